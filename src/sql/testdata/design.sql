CREATE SOURCE otel_metrics
  WATERMARK FOR event_time AS event_time - INTERVAL '5' SECOND IDLE TIMEOUT INTERVAL '30' SECOND MAX FUTURE SKEW INTERVAL '5' MINUTE
WITH (connector='kafka', topic='otlp_metrics', format='otlp_metrics');      -- schema known by format

CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3), pod STRING METADATA FROM 'key',
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (connector='kafka', topic='metrics', format='json');

CREATE FEATURE VIEW latency ALLOW LATENESS INTERVAL '30' SECOND LATE DATA TO 'late' FILL MISSING WITH NULL FOR 5 WINDOWS AS
SELECT service_name, window_start, window_end, avg(value) AS mean_ms, quantile(value, 0.99) AS p99_ms, count(*) AS n
FROM HOP(TABLE otel_metrics, DESCRIPTOR(event_time), INTERVAL '10' SECOND, INTERVAL '1' MINUTE)   -- slide, then size
WHERE metric_name = 'http.server.request.duration'
GROUP BY service_name, window_start, window_end
EMIT ON WINDOW CLOSE;

CREATE DETECTOR slow ON latency KEY (service_name) FEATURES (mean_ms, p99_ms)
  USING isolation_forest WITH (contamination = 0.01, warmup = 60);

CREATE POLICY restart_slow ON slow WHEN score > 1 AND n >= 50 FOR 3 OF 5 WINDOWS CLEAR WHEN score < 0.6 FOR 5 WINDOWS
  COOLDOWN INTERVAL '10' MINUTE LIMIT 5 ACTIONS PER INTERVAL '1' HOUR
  DO ACTION 'restart' TARGET service_name PARAMS (reason = 'p99 anomaly') EXPIRES AFTER INTERVAL '2' MINUTE
  MODE APPROVE INTO actions;                        -- OFF | SHADOW | APPROVE | AUTO;  DO CHOOSE lets the learned tree pick
