CREATE SOURCE app (service STRING, code INT, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE TABLE owners (service STRING, team STRING, critical BOOLEAN, weight DOUBLE, PRIMARY KEY (service) NOT ENFORCED) WITH (connector = 'file', path = 'tables/owners.csv', format = 'csv');
CREATE TABLE routes (service STRING, code BIGINT, route STRING, PRIMARY KEY (service, code)) WITH (connector = 'file', path = 'tables/routes.jsonl', format = 'json');
CREATE VIEW owned AS SELECT a.ts, a.service, o.team, ms * coalesce(weight, 1) AS cost FROM app AS a JOIN owners FOR SYSTEM_TIME AS OF a.ts AS o ON a.service = o.service WHERE o.critical AND ms > 0;
CREATE VIEW routed AS SELECT ts, route, team FROM app LEFT JOIN routes FOR SYSTEM_TIME AS OF ts AS r ON r.service = app.service AND (app.code = r.code) LEFT JOIN owners FOR SYSTEM_TIME AS OF app.ts ON upper(app.service) = owners.service;
CREATE FEATURE VIEW costs AS SELECT team, window_end, sum(cost) AS cost FROM TUMBLE(TABLE owned, DESCRIPTOR(ts), INTERVAL '10 s') GROUP BY team, window_end;
CREATE FEATURE VIEW routes_taken AS SELECT route, window_end, count(*) AS n, max(team) AS team FROM TUMBLE(TABLE routed, DESCRIPTOR(ts), INTERVAL '10 s') GROUP BY route, window_end;
CREATE FEATURE VIEW inline AS SELECT team, window_end, count(*) AS n FROM TUMBLE(TABLE (SELECT ts, team FROM app JOIN owners FOR SYSTEM_TIME AS OF ts ON app.service = owners.service), DESCRIPTOR(ts), INTERVAL '10 s') GROUP BY team, window_end;
