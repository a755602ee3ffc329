-- Reads a batch's messages from standard input, and writes a line for each row that they name: its key, and the row as it is
-- now, or \N if it is not there any more.
\set messages `cat`
COPY (
    SELECT id, to_jsonb(products)
    FROM (SELECT DISTINCT (message::json #>> '{payload,id}')::bigint AS id
          FROM string_to_table(:'messages', E'\n') AS message) AS changed
    LEFT JOIN products USING (id)
) TO STDOUT;
