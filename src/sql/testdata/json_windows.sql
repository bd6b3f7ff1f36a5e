/* The three spellings of a window give one plan, and all of these views share panes. */
CREATE TABLE metrics (
  ts TIMESTAMP(3), service STRING, name VARCHAR(20), value DOUBLE, code INT, ok BOOLEAN,
  host TEXT FROM 'meta.host.name',
  offset_ BIGINT METADATA FROM 'offset',
  headers MAP<STRING, STRING> METADATA FROM 'headers',
  WATERMARK FOR ts AS ts - INTERVAL '2 seconds')
WITH (connector = 'kafka', 'topic' = 'metrics', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE OR REPLACE FEATURE VIEW q1 AS
SELECT service, name, window_start, window_end, count(*) AS n, avg(value) AS mean, max(value) AS high, min(value) AS low
FROM TUMBLE(TABLE metrics, DESCRIPTOR(ts), INTERVAL '10' SECOND)
GROUP BY service, name, window_start, window_end;

CREATE FEATURE VIEW table_call AS
SELECT name, service, window_end, sum(value) FROM TABLE(HOP(TABLE metrics, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '1' MINUTE))
GROUP BY name, service, window_end EMIT ON WINDOW CLOSE;

CREATE FEATURE VIEW bare_call AS
SELECT m.service, m.name, m.window_start, sum(m.value) AS s FROM HOP(metrics, ts, INTERVAL '10 seconds', INTERVAL '1 minute') AS m
GROUP BY m.service, m.name, m.window_start;

CREATE FEATURE VIEW grouped AS
SELECT service, name, window_start, window_end, sum(value) AS s FROM metrics
GROUP BY service, name, hop(ts, INTERVAL '10' SECOND, INTERVAL '60' SECOND);

CREATE FEATURE VIEW everything AS
SELECT upper(service) AS svc, headers['traceparent'] AS trace, window_end,
  count(*) FILTER (WHERE NOT ok) AS failed,
  count(value) AS valued,
  sum(code) AS codes,
  stddev(value) AS sd,
  variance(value) AS v,
  approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY value) AS p90,
  rate(value) AS per_second,
  count(DISTINCT host) AS hosts,
  corr(value, code) AS together,
  CASE WHEN count(*) > 0 THEN sum(CASE WHEN code >= 500 THEN 1 ELSE 0 END) * 1.0 / count(*) END AS error_share,
  max(ts) AS latest,
  max(offset_) AS last_offset
FROM TUMBLE(TABLE metrics, DESCRIPTOR(ts), INTERVAL '1' MINUTE, INTERVAL '15' SECOND)
WHERE name IN ('a', 'b', 'c', 'd') AND host LIKE 'web-%' AND value > 0
GROUP BY svc, headers['traceparent'], window_start, window_end
HAVING count(*) > 3 AND failed > 0;
