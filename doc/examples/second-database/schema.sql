-- The copy, in the second database. Any constraint besides the primary key can be broken for a moment: leave it out.
CREATE TABLE products (
    id          bigint PRIMARY KEY,
    name        text NOT NULL,
    price       numeric(10,2) NOT NULL,
    description text
);

-- How far it has come: the last message of the newest batch that is in it. A stream's ids are two numbers of 64 bits
-- without a sign, which compare as numeric[].
CREATE TABLE copied_to (
    stream   text,
    consumer text,
    last_id  numeric[] NOT NULL,
    PRIMARY KEY (stream, consumer)
);

-- Begins a batch: writes how far the copy will have come, and holds up any other process with a batch until this one is
-- committed. False: the batch is to be ignored. It is in the copy already; or it ends before what is, because somebody
-- else went on while its process was held up, and what it has read may be old. That is no error: a batch
-- that is in the copy, and whose offset was not committed, may come again as a smaller one.
CREATE FUNCTION begin_batch(the_stream text, the_consumer text, id text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    new_id numeric[] := string_to_array(id, '-');
    old_id numeric[];
BEGIN
    INSERT INTO copied_to VALUES (the_stream, the_consumer, '{0,0}') ON CONFLICT DO NOTHING;
    SELECT last_id INTO old_id FROM copied_to
        WHERE (stream, consumer) = (the_stream, the_consumer) FOR UPDATE;
    IF new_id <= old_id THEN
        RETURN false;
    END IF;
    UPDATE copied_to SET last_id = new_id WHERE (stream, consumer) = (the_stream, the_consumer);
    RETURN true;
END
$$;
