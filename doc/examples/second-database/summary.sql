-- A summary of the table products, in the same database. It is for a stream whose payload has the name, as well:
--     SELECT redstream.attach('products', stream => 'product_names', payload => ARRAY['id', 'name']);
-- A product that gets another name is then announced by the old and by the new one.
CREATE TABLE summary (
    name     text PRIMARY KEY,
    products bigint NOT NULL,
    total    numeric NOT NULL,
    messages bigint NOT NULL   -- so many have told of this name
);
CREATE INDEX ON products (name);

-- Works on a batch, and returns how many messages it had.
CREATE FUNCTION summarize() RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    names text[];
BEGIN
    SELECT array_agg(payload->>'name') INTO names FROM redstream.consume('product_names', 'summary');

    -- A statement of its own, since a statement sees the table as it was when the statement began: one with consume() in it
    -- would not see what messages tell of that came in meanwhile. The isolation level must be READ COMMITTED.
    INSERT INTO summary AS s
        SELECT name, count(id), coalesce(sum(price), 0), changed.messages
        FROM (SELECT name, count(*) AS messages FROM unnest(names) AS name GROUP BY name) AS changed
        LEFT JOIN products USING (name)
        GROUP BY name, changed.messages
        ON CONFLICT (name) DO UPDATE
            SET (products, total, messages) = (excluded.products, excluded.total, s.messages + excluded.messages);
    RETURN coalesce(cardinality(names), 0);
END
$$;
