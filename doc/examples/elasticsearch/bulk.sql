-- Reads a batch's messages from standard input, and prints the body of a _bulk request for the rows that they name, as they are now: for
-- each an action, and the document in a second line; or only the action of deleting it if it is not there any more. jsonb has
-- no line ends.
\set messages `cat`
SELECT jsonb_build_object(
           CASE WHEN products.id IS NULL THEN 'delete' ELSE 'index' END,
           jsonb_build_object('_index', 'products', '_id', id::text,
                              'version', :version, 'version_type', 'external_gte'))::text
       || coalesce(E'\n' || to_jsonb(products)::text, '')
FROM (SELECT DISTINCT (message::json #>> '{payload,id}')::bigint AS id
      FROM string_to_table(:'messages', E'\n') AS message) AS changed
LEFT JOIN products USING (id);
