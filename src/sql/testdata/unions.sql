CREATE SOURCE web (service STRING, ms DOUBLE, status INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'web', format = 'json');
CREATE SOURCE batch (job STRING, took_s BIGINT, failed BOOLEAN, at TIMESTAMP(6), WATERMARK FOR at AS at - INTERVAL '1' MINUTE) WITH (topic = 'batch', format = 'json');
CREATE SOURCE spans WITH (topic = 'spans', format = 'otlp_spans');
CREATE VIEW work AS
SELECT ts, service AS who, ms, status >= 500 AS failed, 'web' AS kind FROM web WHERE status <> 404
UNION ALL SELECT at, job, took_s * 1000, failed, 'batch' FROM batch
UNION ALL SELECT event_time, s.service_name, duration_ms, status_code = 'ERROR', attributes['kind'] FROM spans AS s;
CREATE VIEW errors AS SELECT ts, upper(service) AS who FROM web WHERE status >= 500;
CREATE FEATURE VIEW busy AS SELECT who, kind, window_end, count(*) AS n, avg(ms) AS ms, bool_or(failed) AS failed, max(ts) AS last FROM HOP(TABLE work, DESCRIPTOR(ts), INTERVAL '5 s', INTERVAL '20 s') WHERE ms > 1 GROUP BY who, kind, window_end;
CREATE FEATURE VIEW busy_too ALLOW LATENESS INTERVAL '10 s' AS SELECT who, window_end, sum(ms) AS ms FROM TUMBLE(work, ts, INTERVAL '20 s') WHERE ms > 1 AND kind = 'web' GROUP BY who, window_end;
CREATE FEATURE VIEW cost AS SELECT b.who, b.window_end, b.ms FROM busy AS b WHERE b.n > 3;
CREATE FEATURE VIEW inline AS SELECT who, window_start, count(*) AS n FROM TUMBLE(TABLE (SELECT ts, service AS who FROM web UNION ALL SELECT at, job FROM batch), DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY who, window_start;
CREATE FEATURE VIEW inline_too AS SELECT r.who, count(*) AS n FROM (SELECT ts, service AS who FROM web UNION ALL SELECT at, job FROM batch) AS r GROUP BY r.who, session(ts, INTERVAL '10 s');
CREATE FEATURE VIEW failing AS SELECT who, window_end, count(*) AS n FROM TUMBLE(errors, ts, INTERVAL '10 s') GROUP BY who, window_end;
CREATE DETECTOR quiet ON failing USING silence;
CREATE DETECTOR d ON busy FEATURES (ms) USING robust_zscore;
CREATE SINK s FROM busy WITH (topic = 'busy');
CREATE SINK events FROM busy WITH (topic = 'busy.events', format = 'cloudevents');
CREATE SINK gauges FROM d WITH (topic = 'd.gauges', format = 'otlp_metrics');
CREATE SINK late FROM LATE ROWS OF busy WITH (topic = 'busy.late', format = 'json');
CREATE SINK dead FROM DEAD LETTERS OF batch WITH (topic = 'batch.dead', format = 'cloudevents');
