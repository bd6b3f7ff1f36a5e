-- The smallest useful pipeline: when a service you name has been silent for 30 seconds, restart it.
--
-- It starts in SHADOW: every decision is recorded on `homeostat.decisions`, nothing is done. README.md, "Starting
-- small", leads from here to APPROVE and AUTO.

-- One JSON object per beat: {"service": "checkout", "instance": "checkout-1", "time": "2026-01-02T03:04:05Z"}.
-- What counts is when the broker took the beat in, never the sender's clock.
CREATE SOURCE heartbeats
  WATERMARK FOR event_time AS event_time - INTERVAL '5' SECOND IDLE TIMEOUT INTERVAL '30' SECOND
WITH (connector = 'kafka', topic = 'heartbeats', format = 'heartbeat');

CREATE DETECTOR quiet ON heartbeats KEY (service)
  USING silence WITH (timeout = '30 s');

-- Name your own one or two services here. Others are watched and reported on `homeostat.anomalies`, never touched.
CREATE POLICY restart_quiet ON quiet
  WHEN score >= 1 AND service IN ('checkout', 'payment')
  COOLDOWN INTERVAL '10' MINUTE
  LIMIT 3 ACTIONS PER INTERVAL '1' HOUR
  DO ACTION 'restart' TARGET service PARAMS (reason = 'no heartbeat for 30 seconds')
  EXPIRES AFTER INTERVAL '2' MINUTE
  MODE SHADOW;
