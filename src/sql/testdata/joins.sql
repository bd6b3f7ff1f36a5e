CREATE SOURCE app (service STRING, kind STRING, ms DOUBLE, ok BOOLEAN, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE FEATURE VIEW requests AS SELECT service, window_start, window_end, count(*) AS n, quantile(ms, 0.99) AS p99 FROM TUMBLE(app, ts, INTERVAL '10 s') WHERE kind = 'request' GROUP BY service, window_end HAVING count(*) > 1;
CREATE FEATURE VIEW queries AS SELECT service, window_start, count(*) FILTER (WHERE NOT ok) AS failed, avg(ms) AS ms FROM TUMBLE(app, ts, INTERVAL '10 s') WHERE kind = 'query' GROUP BY service, window_start;
CREATE FEATURE VIEW pressure AS SELECT r.service, r.window_end, q.ms * q.failed / r.n AS cost, p99 FROM requests AS r JOIN queries q ON r.service = q.service AND r.window_start = q.window_start WHERE q.ms > 1;
CREATE FEATURE VIEW all_requests AS SELECT requests.service, p99, coalesce(failed, 0) AS failed, queries.service AS other FROM requests LEFT JOIN queries ON queries.service = requests.service AND (requests.window_start = queries.window_start);
CREATE FEATURE VIEW slow_requests LATE DATA TO 'slow_late' AS SELECT service, Window_End, p99 FROM requests WHERE p99 > 100;
CREATE DETECTOR d ON pressure FEATURES (cost) USING robust_zscore;
CREATE SINK s FROM slow_requests WITH (topic = 'slow');
