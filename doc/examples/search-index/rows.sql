-- Reads a batch's messages from standard input, and prints a line for each row that they name: the document's key, and fields
-- and values of the row as it is now, as a JSON array of strings; nothing instead of that if it is not there any more.
\set messages `cat`
SELECT 'product:' || id,
       CASE WHEN products.id IS NOT NULL THEN
           jsonb_build_array('name', name, 'price', price::text)
           || CASE WHEN description IS NULL THEN '[]' ELSE jsonb_build_array('description', description) END
       END
FROM (SELECT DISTINCT (message::json #>> '{payload,id}')::bigint AS id
      FROM string_to_table(:'messages', E'\n') AS message) AS changed
LEFT JOIN products USING (id);
