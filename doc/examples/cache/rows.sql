-- Reads a batch's messages from standard input, and prints a line for each row that they name: its key in the cache and the
-- row as JSON, as it is now; nothing instead of the JSON if it is not there any more. jsonb has no line ends and no tabs.
\set messages `cat`
SELECT 'product:' || id, to_jsonb(products)
FROM (SELECT DISTINCT (message::json #>> '{payload,id}')::bigint AS id
      FROM string_to_table(:'messages', E'\n') AS message) AS changed
LEFT JOIN products USING (id);
