-- Kafka's own health: consumers that fall behind, partitions that are not safe, a cluster without a leader.
--
-- Reads the metrics of the OpenTelemetry Collector's kafkametrics receiver. What heals the broker that carries the commands
-- should not depend on it alone: all policies are in SHADOW, for a person to read. `homeostat test pipelines/kafka` runs
-- the cases beside this file.

CREATE SOURCE metrics
  WATERMARK FOR event_time AS event_time - INTERVAL '15' SECOND IDLE TIMEOUT INTERVAL '2' MINUTE
WITH (connector = 'kafka', topic = 'otlp_metrics', format = 'otlp_metrics');

-- How far each group is behind on its worst partition, and whether it is catching up: the lag's slope is records per second.
CREATE FEATURE VIEW consumer_lag
  ALLOW LATENESS INTERVAL '30' SECOND
AS
SELECT attributes['group'] AS consumer_group, attributes['topic'] AS topic, window_start, window_end,
  max(value) AS lag, slope(value) AS lag_per_s, count(DISTINCT attributes['partition']) AS partitions
FROM HOP(TABLE metrics, DESCRIPTOR(event_time), INTERVAL '1' MINUTE, INTERVAL '5' MINUTE)
WHERE metric_name = 'kafka.consumer_group.lag'
GROUP BY consumer_group, topic, window_start, window_end;

-- Replicas that are in sync against those that there should be, by topic.
CREATE FEATURE VIEW replication AS
SELECT attributes['topic'] AS topic, window_start, window_end,
  min(value) FILTER (WHERE metric_name = 'kafka.partition.replicas_in_sync') AS in_sync,
  max(value) FILTER (WHERE metric_name = 'kafka.partition.replicas') AS replicas,
  coalesce(max(value) FILTER (WHERE metric_name = 'kafka.partition.replicas'), 0)
    - coalesce(min(value) FILTER (WHERE metric_name = 'kafka.partition.replicas_in_sync'), 0) AS missing
FROM TUMBLE(TABLE metrics, DESCRIPTOR(event_time), INTERVAL '1' MINUTE)
WHERE metric_name IN ('kafka.partition.replicas', 'kafka.partition.replicas_in_sync')
GROUP BY topic, window_start, window_end;

-- Writers that stop: the increase of a topic's last offset.
CREATE FEATURE VIEW traffic FILL MISSING WITH NULL FOR 5 WINDOWS AS
SELECT attributes['topic'] AS topic, attributes['partition'] AS partition, window_start, window_end,
  rate(value) AS records_per_s
FROM TUMBLE(TABLE metrics, DESCRIPTOR(event_time), INTERVAL '1' MINUTE)
WHERE metric_name = 'kafka.partition.current_offset'
GROUP BY topic, partition, window_start, window_end;

CREATE DETECTOR behind ON consumer_lag KEY (consumer_group, topic) FEATURES (lag)
  USING static_threshold WITH (upper = 100000);

CREATE DETECTOR unsafe ON replication KEY (topic) FEATURES (missing)
  USING static_threshold WITH (upper = 1);

CREATE POLICY restart_behind ON behind
  WHEN is_anomaly AND lag_per_s > 0 FOR 3 OF 5 WINDOWS
  CLEAR WHEN lag < 1000 FOR 2 WINDOWS
  LIMIT 2 ACTIONS PER INTERVAL '1' HOUR
  DO ACTION 'restart' TARGET consumer_group PARAMS (reason = 'far behind, and falling further')
  MODE SHADOW;
