-- The golden signals of every service, from the spans of its servers: traffic, errors, latency.
--
-- Reads what an OpenTelemetry Collector's Kafka exporter writes by default. All policies are in SHADOW: decisions are
-- recorded, nothing is done. `homeostat test pipelines/golden_signals` runs the cases beside this file.

CREATE SOURCE spans
  WATERMARK FOR event_time AS event_time - INTERVAL '10' SECOND IDLE TIMEOUT INTERVAL '1' MINUTE
WITH (connector = 'kafka', topic = 'otlp_spans', format = 'otlp_spans');

-- A request is a span that a server has answered; a batch job's or a client's own spans are none. Of a service that was
-- asked nothing for three slides there is still a row, so that a detector sees traffic stop.
CREATE FEATURE VIEW golden
  ALLOW LATENESS INTERVAL '10' SECOND FILL MISSING WITH NULL FOR 3 WINDOWS
AS
SELECT service_name, window_start, window_end,
  coalesce(count(*), 0) / 60.0 AS requests_per_s,
  count(*) FILTER (WHERE status_code = 'error') * 1.0 / count(*) AS error_share,
  quantile(duration_ms, 0.5) AS p50_ms,
  quantile(duration_ms, 0.99) AS p99_ms,
  count(*) AS requests
FROM HOP(TABLE spans, DESCRIPTOR(event_time), INTERVAL '10' SECOND, INTERVAL '1' MINUTE)
WHERE kind = 'server'
GROUP BY service_name, window_start, window_end;

-- Where the time goes: the same by route, for people. Few requests say little.
CREATE FEATURE VIEW routes AS
SELECT service_name, coalesce(attributes['http.route'], name) AS route, window_end,
  count(*) AS requests, avg(duration_ms) AS mean_ms, max(duration_ms) AS worst_ms
FROM TUMBLE(TABLE spans, DESCRIPTOR(event_time), INTERVAL '1' MINUTE)
WHERE kind = 'server'
GROUP BY service_name, route, window_end
HAVING count(*) >= 5;

CREATE DETECTOR failing ON golden KEY (service_name) FEATURES (error_share)
  USING static_threshold WITH (upper = 0.05);

-- Far from what is usual for this service.
CREATE DETECTOR slow ON golden KEY (service_name) FEATURES (p99_ms)
  USING robust_zscore WITH (threshold = 8, window = 360, warmup = 30);

CREATE POLICY restart_failing ON failing
  WHEN is_anomaly AND requests >= 20 FOR 3 OF 5 WINDOWS
  CLEAR WHEN error_share < 0.02 FOR 6 WINDOWS
  LIMIT 3 ACTIONS PER INTERVAL '1' HOUR
  DO ACTION 'restart' TARGET service_name PARAMS (reason = 'more than one request in twenty fails')
  MODE SHADOW;

CREATE POLICY restart_slow ON slow
  WHEN is_anomaly AND p99_ms > 500 AND requests >= 20 FOR 3 OF 5 WINDOWS
  LIMIT 3 ACTIONS PER INTERVAL '1' HOUR
  DO ACTION 'restart' TARGET service_name PARAMS (reason = 'slow beyond what is usual')
  MODE SHADOW;
