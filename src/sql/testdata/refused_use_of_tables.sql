CREATE SOURCE app (service STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE TABLE same (service STRING, team STRING, PRIMARY KEY (service)) WITH (topic = 'app', format = 'json');
CREATE TABLE owners (service STRING, team STRING, PRIMARY KEY (service)) WITH (topic = 'owners', format = 'json');
CREATE VIEW of_itself AS SELECT ts, team FROM app JOIN same FOR SYSTEM_TIME AS OF ts ON app.service = same.service;
CREATE VIEW owned AS SELECT ts, team FROM app JOIN owners FOR SYSTEM_TIME AS OF ts ON app.service = owners.service;
CREATE FEATURE VIEW one AS SELECT team, window_end, count(*) AS n FROM TUMBLE(TABLE of_itself, DESCRIPTOR(ts), INTERVAL '10 s') GROUP BY team, window_end;
CREATE FEATURE VIEW two ON STATE LIMIT EVICT AT 100 KEYS AS SELECT team, window_end, count(*) AS n FROM TUMBLE(TABLE owned, DESCRIPTOR(ts), INTERVAL '10 s') GROUP BY team, window_end;
