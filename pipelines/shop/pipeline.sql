-- The pipeline of `homeostat demo`: eight services, four ways to break, one cure.
--
-- Times are short so that a person can watch: silence after 3 seconds, a cooldown of 10. For a fleet of your own start from
-- pipelines/starter. The rest of what the demonstration shortens stands beside this file, in homeostat.toml.

------------------------------------------------------------------------------------------------------------------------
-- What the services say

CREATE SOURCE heartbeats
  WATERMARK FOR event_time AS event_time - INTERVAL '500' MILLISECOND IDLE TIMEOUT INTERVAL '10' SECOND
WITH (connector = 'kafka', topic = 'heartbeats', format = 'heartbeat');

CREATE SOURCE otel_metrics
  WATERMARK FOR event_time AS event_time - INTERVAL '1' SECOND IDLE TIMEOUT INTERVAL '10' SECOND
WITH (connector = 'kafka', topic = 'otlp_metrics', format = 'otlp_metrics');

------------------------------------------------------------------------------------------------------------------------
-- Silence: a crash, or a process that hangs

CREATE DETECTOR quiet ON heartbeats KEY (service)
  USING silence WITH (timeout = '3 s');

CREATE POLICY restart_quiet ON quiet
  COOLDOWN INTERVAL '10' SECOND
  LIMIT 20 ACTIONS PER INTERVAL '10' MINUTE
  DO ACTION 'restart' TARGET service PARAMS (reason = 'no heartbeat')
  EXPIRES AFTER INTERVAL '30' SECOND
  MODE AUTO;

------------------------------------------------------------------------------------------------------------------------
-- Memory: a leak

CREATE FEATURE VIEW memory AS
SELECT service_name, window_start, window_end, max(value) / 1048576.0 AS resident_mib
FROM TUMBLE(TABLE otel_metrics, DESCRIPTOR(event_time), INTERVAL '1' SECOND)
WHERE metric_name = 'process.memory.usage'
GROUP BY service_name, window_start, window_end;

CREATE DETECTOR heavy ON memory KEY (service_name) FEATURES (resident_mib)
  USING static_threshold WITH (upper = 200);

CREATE POLICY restart_heavy ON heavy
  WHEN score >= 1 FOR 2 OF 3 WINDOWS CLEAR WHEN score < 0.8 FOR 2 WINDOWS
  COOLDOWN INTERVAL '10' SECOND
  LIMIT 20 ACTIONS PER INTERVAL '10' MINUTE
  DO ACTION 'restart' TARGET service_name PARAMS (reason = 'memory grows without end')
  EXPIRES AFTER INTERVAL '30' SECOND
  MODE AUTO;

------------------------------------------------------------------------------------------------------------------------
-- Requests: slow, or failing
--
-- A slow payment makes checkout slow, and the frontend with it. Only the service's own part counts here: the time that it
-- works itself, and the errors that are its own doing, so that the one that is sick is found and not those who wait for it.

CREATE FEATURE VIEW requests AS
SELECT service_name, window_start, window_end,
  sum("sum") FILTER (WHERE metric_name = 'shop.request.own.duration') * 1000.0
    / sum("count") FILTER (WHERE metric_name = 'shop.request.own.duration') AS own_ms,
  coalesce(sum("count") FILTER (WHERE metric_name = 'http.server.request.duration'
                                  AND attributes['error.type'] = 'internal'), 0) * 1.0
    / sum("count") FILTER (WHERE metric_name = 'http.server.request.duration') AS own_error_share
FROM HOP(TABLE otel_metrics, DESCRIPTOR(event_time), INTERVAL '1' SECOND, INTERVAL '3' SECOND)
WHERE metric_name IN ('shop.request.own.duration', 'http.server.request.duration')
GROUP BY service_name, window_start, window_end;

-- Learns how long each service usually takes. Far from usual alone is no reason to act: the policy asks for a floor as
-- well. Errors are rare, and a rare thing is unusual every time: their share is no feature, but the policy may look at it.
CREATE DETECTOR slow ON requests KEY (service_name) FEATURES (own_ms)
  USING robust_zscore WITH (threshold = 10, window = 120, warmup = 8);

CREATE POLICY restart_slow ON slow
  WHEN score >= 1 AND (own_ms >= 150 OR own_error_share >= 0.25) FOR 3 OF 4 WINDOWS
  CLEAR WHEN own_ms < 100 AND own_error_share < 0.1 FOR 2 WINDOWS
  COOLDOWN INTERVAL '10' SECOND
  LIMIT 20 ACTIONS PER INTERVAL '10' MINUTE
  DO ACTION 'restart' TARGET service_name PARAMS (reason = 'slow or failing by its own doing')
  EXPIRES AFTER INTERVAL '30' SECOND
  MODE AUTO;
