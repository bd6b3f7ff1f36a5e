CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE SOURCE unread (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'unread', format = 'json');
CREATE FEATURE VIEW v AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE SINK dead FROM DEAD LETTERS OF unread WITH (topic = 'dead');
