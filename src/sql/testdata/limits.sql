CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE FEATURE VIEW v ON STATE LIMIT REJECT AT 100000 KEYS ALLOW LATENESS INTERVAL '10 s' AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE FEATURE VIEW w ON STATE LIMIT FAIL AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE FEATURE VIEW x AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE FEATURE VIEW y ON STATE LIMIT EVICT AT 512 MB AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
