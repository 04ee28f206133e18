"""What the end-to-end tests stand on: a throwaway PostgreSQL, the pooler under test, and a client that speaks bytes."""
