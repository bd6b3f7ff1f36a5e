-- Saturation of Kubernetes workloads: CPU and memory against their limits, restarts, and memory that only grows.
--
-- Reads the metrics of the OpenTelemetry Collector's kubeletstats and k8s_cluster receivers. All policies are in SHADOW.
-- `homeostat test pipelines/kubernetes` runs the cases beside this file.

CREATE SOURCE metrics
  WATERMARK FOR event_time AS event_time - INTERVAL '15' SECOND IDLE TIMEOUT INTERVAL '2' MINUTE
WITH (connector = 'kafka', topic = 'otlp_metrics', format = 'otlp_metrics');

-- The fullest pod speaks for its deployment: an average would hide it.
CREATE FEATURE VIEW saturation
  ALLOW LATENESS INTERVAL '30' SECOND
AS
SELECT resource['k8s.namespace.name'] AS namespace, resource['k8s.deployment.name'] AS deployment,
  window_start, window_end,
  max(value) FILTER (WHERE metric_name = 'k8s.pod.cpu_limit_utilization') AS cpu_share,
  max(value) FILTER (WHERE metric_name = 'k8s.pod.memory_limit_utilization') AS memory_share,
  count(DISTINCT resource['k8s.pod.name']) AS pods
FROM HOP(TABLE metrics, DESCRIPTOR(event_time), INTERVAL '1' MINUTE, INTERVAL '5' MINUTE)
WHERE metric_name IN ('k8s.pod.cpu_limit_utilization', 'k8s.pod.memory_limit_utilization')
  AND resource['k8s.deployment.name'] IS NOT NULL
GROUP BY namespace, deployment, window_start, window_end;

-- Restarts are counted per container; memory that grows by the minute will not stop at the limit.
CREATE FEATURE VIEW containers AS
SELECT resource['k8s.deployment.name'] AS deployment, resource['k8s.pod.name'] AS pod,
  resource['k8s.container.name'] AS container, window_start, window_end,
  increase(value) FILTER (WHERE metric_name = 'k8s.container.restarts') AS restarts,
  slope(value) FILTER (WHERE metric_name = 'container.memory.working_set') * 60 / 1048576 AS growth_mib_per_min,
  last(value) FILTER (WHERE metric_name = 'container.memory.working_set') / 1048576 AS working_set_mib
FROM TUMBLE(TABLE metrics, DESCRIPTOR(event_time), INTERVAL '5' MINUTE)
WHERE metric_name IN ('k8s.container.restarts', 'container.memory.working_set')
GROUP BY deployment, pod, container, window_start, window_end;

CREATE DETECTOR saturated ON saturation KEY (namespace, deployment) FEATURES (cpu_share, memory_share)
  USING static_threshold WITH (upper = 0.9);

CREATE DETECTOR crashing ON containers KEY (deployment, pod, container) FEATURES (restarts)
  USING static_threshold WITH (upper = 3);

CREATE POLICY scale_saturated ON saturated
  WHEN is_anomaly FOR 3 OF 5 WINDOWS
  CLEAR WHEN cpu_share < 0.7 AND memory_share < 0.7 FOR 5 WINDOWS
  LIMIT 2 ACTIONS PER INTERVAL '1' HOUR
  DO ACTION 'scale_up' TARGET deployment PARAMS (replicas = 1)
  MODE SHADOW;

CREATE POLICY roll_back_crashing ON crashing
  WHEN is_anomaly FOR 2 OF 2 WINDOWS
  LIMIT 1 ACTION PER INTERVAL '1' HOUR
  DO ACTION 'rollback' TARGET deployment PARAMS (reason = 'its containers restart over and over')
  MODE SHADOW;
