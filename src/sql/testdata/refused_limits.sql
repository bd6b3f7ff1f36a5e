CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE FEATURE VIEW evict ON STATE LIMIT EVICT AT 10 TB AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE FEATURE VIEW other ON STATE LIMIT DROP AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE FEATURE VIEW zero ON STATE LIMIT REJECT AT 0 KEYS AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE FEATURE VIEW bytes ON STATE LIMIT FAIL AT 100 BYTES AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE FEATURE VIEW a ON STATE LIMIT FAIL AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE FEATURE VIEW b AS SELECT service, window_end, max(ms) AS m FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE FEATURE VIEW c AS SELECT a.a, b.m FROM a JOIN b ON a.service = b.service AND a.window_end = b.window_end;
