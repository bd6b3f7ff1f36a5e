CREATE SOURCE app (service STRING, ms DOUBLE, ok BOOLEAN, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE SOURCE m WITH (topic = 'm', format = 'otlp_metrics');
CREATE FEATURE VIEW slow AS SELECT service, window_end, worst, cores FROM together WHERE worst > 100;
CREATE FEATURE VIEW together AS SELECT requests.service, requests.window_end, worst, n, cores FROM requests JOIN cpu ON requests.service = cpu.name AND requests.window_end = cpu.window_end;
CREATE FEATURE VIEW requests AS SELECT service, window_end, max(ms) AS worst, count(*) AS n FROM TUMBLE(app, ts, INTERVAL '10 s') WHERE ok GROUP BY service, window_end HAVING count(*) > 1;
CREATE FEATURE VIEW cpu AS SELECT resource['k8s.deployment.name'] AS name, window_end, avg(value) AS cores FROM TUMBLE(m, event_time, INTERVAL '10 s') WHERE metric_name = 'cpu' GROUP BY name, window_end;
CREATE DETECTOR d ON slow KEY (service) FEATURES (worst, cores) USING robust_zscore;
