CREATE SOURCE app (service STRING, user_id STRING, ms DOUBLE, ts TIMESTAMP(6), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE FEATURE VIEW visits ALLOW LATENESS INTERVAL '10' SECOND AS
SELECT user_id, window_start, window_end, count(*) AS clicks, avg(ms) AS mean_ms
FROM SESSION(TABLE app, DESCRIPTOR(ts), INTERVAL '30' MINUTE) GROUP BY user_id, window_start, window_end;
CREATE FEATURE VIEW bursts AS SELECT service, window_end, count(*) AS n FROM app GROUP BY service, session(ts, INTERVAL '1500 milliseconds');
CREATE DETECTOR busy ON bursts FEATURES (n) USING static_threshold WITH (upper = 100);
