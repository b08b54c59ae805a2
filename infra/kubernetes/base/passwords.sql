-- After databases.sql, by the image's first start. Passwords come by the environment: they are on no command line, and in no log.
\set ON_ERROR_STOP on
\getenv prefect PREFECT_PASSWORD
\getenv mlflow MLFLOW_PASSWORD
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET password_encryption = 'scram-sha-256';
ALTER ROLE headrace_prefect PASSWORD :'prefect';
ALTER ROLE headrace_mlflow PASSWORD :'mlflow';
