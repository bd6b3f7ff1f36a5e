CREATE SOURCE app (service STRING, route STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE FEATURE VIEW v AS SELECT service, route, window_start, window_end, avg(ms) AS ms, count(*) AS n FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, route, window_end;
CREATE FEATURE VIEW judged AS SELECT service, route, window_end, ML_DETECT_ANOMALIES(ms, window_end) OVER (PARTITION BY service, route ORDER BY window_end) AS a FROM v WHERE n > 10;
CREATE FEATURE VIEW seasonal AS SELECT (ml_detect_anomalies(n + 1, window_start, JSON_OBJECT('m' VALUE 24, 'enableStl' VALUE TRUE, 'updateInterval' VALUE 5, 'p' VALUE 3)) OVER (PARTITION BY route, service ORDER BY window_end ASC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW))[6] AS is_anomaly, service FROM v;
CREATE FEATURE VIEW alarms AS SELECT r.service, r.a.upper_bound AS upper_bound, ms FROM (SELECT service, ms, ML_DETECT_ANOMALIES(ms, window_end, JSON_OBJECT('p' VALUE 2, 'maxTrainingSize' VALUE 1000)) OVER (PARTITION BY service, route ORDER BY window_end) AS a, n FROM v WHERE n > 10) AS r WHERE a.is_anomaly AND n > 20;
CREATE FEATURE VIEW nested AS SELECT x.service, twice FROM (SELECT service, ms * 2 AS twice FROM v WHERE n > 1) AS x WHERE twice > 3;
CREATE SINK s FROM alarms WITH (topic = 'alarms');
