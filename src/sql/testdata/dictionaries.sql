-- Every comparison of a string with literals goes by the dictionary: no CAST of a column stands in the plan.
CREATE SOURCE spans WITH (topic='spans', format='otlp_spans');
CREATE FEATURE VIEW v AS
SELECT service_name, window_end, count(*) AS n,
  count(*) FILTER (WHERE status_code <> 'OK' OR status_code IS NULL) AS failed,
  sum(CASE WHEN attributes['http.route'] = '/pay' THEN duration_ms ELSE 0.0 END) AS pay_ms,
  sum(CASE attributes['http.route'] WHEN '/pay' THEN 1 WHEN '/cart' THEN 2 END) AS routes,
  count(DISTINCT name) AS names
FROM TUMBLE(spans, event_time, INTERVAL '10 s')
WHERE kind = 'SERVER' AND name NOT IN ('a', 'b') AND name IN ('d', 'e', 'f', 'g', 'h') AND resource['env'] LIKE 'prod%'
  AND NOT (scope_name = 'x') AND 'y' <> scope_name AND service_name > 'a' AND service_name BETWEEN 'b' AND 'c'
GROUP BY service_name, window_end;
