CREATE SOURCE heartbeats WITH (connector='kafka', topic='heartbeats', format='heartbeat');
CREATE SOURCE spans WATERMARK FOR event_time AS event_time - INTERVAL '500 milliseconds' IDLE TIMEOUT NEVER
WITH (topic='otlp_spans', format='otlp_spans_json', scan.startup.mode='timestamp', scan.startup.timestamp-millis=1767225600000);
CREATE DETECTOR quiet ON heartbeats KEY (service) USING silence WITH (timeout='30 s');
CREATE DETECTOR quiet_too ON heartbeats KEY (service) USING silence WITH (timeout='1 minute');
CREATE DETECTOR instance_gone ON heartbeats KEY (service, instance) USING silence;

CREATE FEATURE VIEW errors AS
SELECT service_name AS service, attributes['http.route'] AS route, resource['k8s.pod.name'] AS pod, window_end,
  count(*) AS n, count(*) FILTER (WHERE status_code = 'ERROR') AS failed
FROM TUMBLE(spans, event_time, INTERVAL '1' MINUTE)
WHERE kind = 'SERVER' AND attributes['http.request.method'] <> 'OPTIONS'
GROUP BY service_name, route, pod, window_end
HAVING count(*) >= 10;
CREATE DETECTOR no_traffic ON errors USING silence WITH (timeout = '2 minutes');
CREATE DETECTOR failing ON errors KEY (service, route, pod) FEATURES (failed) USING static_threshold WITH (upper = 10);

CREATE POLICY restart_quiet ON quiet DO ACTION 'restart';
CREATE POLICY heal_failing ON failing
  WHEN is_anomaly AND n >= 50 AND service <> 'payments' FOR 3 WINDOWS CLEAR WHEN NOT is_anomaly FOR 2 WINDOWS
  COOLDOWN INTERVAL '0' SECOND LIMIT 5 ACTIONS PER INTERVAL '1' HOUR LIMIT 1 ACTION PER INTERVAL '5' MINUTE
  DO LADDER (restart, 'scale_up', 'page') TARGET service PARAMS (grace_s = 10, drain = true, reason = 'errors', low = -1.5)
  MODE AUTO INTO 'urgent.actions';
CREATE POLICY learned ON failing WHEN score >= 2 DO CHOOSE TARGET pod MODE OFF;
