-- Roles and databases of the services, by the superuser. May be run again: what is there stays.
--     sudo -u postgres psql --file=infra/services/postgresql/databases.sql
-- The roles get no password: on this machine PostgreSQL knows the accounts of the same names by its socket. For a database on
-- another machine, give each one there (psql's \password sends a hash).
\set ON_ERROR_STOP on

SELECT format('CREATE ROLE %I LOGIN', name) FROM (VALUES ('headrace_prefect'), ('headrace_mlflow')) AS wanted (name)
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
SELECT format('CREATE DATABASE %I OWNER %I ENCODING ''UTF8'' TEMPLATE template0', name, name)
  FROM (VALUES ('headrace_prefect'), ('headrace_mlflow')) AS wanted (name)
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec

-- Neither service reads the other's.
REVOKE ALL ON DATABASE headrace_prefect, headrace_mlflow FROM PUBLIC;

-- A process that hangs in the middle of a transaction must not keep PostgreSQL from cleaning up.
ALTER ROLE headrace_prefect SET idle_in_transaction_session_timeout = '10min';
ALTER ROLE headrace_mlflow SET idle_in_transaction_session_timeout = '10min';

-- Prefect searches names by it (Debian: in the package of the server; elsewhere postgresql-contrib).
\connect headrace_prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;
