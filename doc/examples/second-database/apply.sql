-- Reads what fetch.sql has written, and brings the copy up to it, in one transaction.
CREATE TEMPORARY TABLE changed (id bigint, product jsonb);
\copy changed FROM pstdin

BEGIN;
SELECT begin_batch(:'stream', :'consumer', :'last_id') AS new \gset
\if :new
DELETE FROM products USING changed WHERE products.id = changed.id AND product IS NULL;
INSERT INTO products
    SELECT p.* FROM changed, jsonb_populate_record(NULL::products, product) AS p WHERE product IS NOT NULL
    ON CONFLICT (id) DO UPDATE
        SET (name, price, description) = (excluded.name, excluded.price, excluded.description);
\endif
COMMIT;
