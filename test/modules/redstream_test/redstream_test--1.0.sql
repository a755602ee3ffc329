\echo Use "CREATE EXTENSION redstream_test" to load this file. \quit

CREATE FUNCTION noop() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'redstream_test_noop';
COMMENT ON FUNCTION noop() IS
'an AFTER ROW trigger that does nothing: what any trigger written in C costs';

CREATE FUNCTION memory() RETURNS bigint
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'redstream_test_memory';
COMMENT ON FUNCTION memory() IS
'bytes that all memory contexts of this backend have allocated now';
