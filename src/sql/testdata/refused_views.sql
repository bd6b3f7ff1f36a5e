CREATE SOURCE m WITH (topic='m', format='otlp_metrics');

CREATE FEATURE VIEW no_source AS SELECT count(*) FROM TUMBLE(TABLE n, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW no_window AS SELECT service_name, count(*) FROM m GROUP BY service_name;
CREATE FEATURE VIEW unbounded AS SELECT service_name, count(*) FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY service_name;
CREATE FEATURE VIEW ungrouped AS SELECT count(*) FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE);
CREATE FEATURE VIEW other_time AS SELECT count(*) FROM TUMBLE(TABLE m, DESCRIPTOR(start_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW swapped AS SELECT count(*) FROM HOP(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE, INTERVAL '10' SECOND) GROUP BY window_start;
CREATE FEATURE VIEW one_length AS SELECT count(*) FROM HOP(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW too_fine AS SELECT count(*) FROM HOP(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MILLISECOND, INTERVAL '1' HOUR) GROUP BY window_start;
CREATE FEATURE VIEW fine_lateness ALLOW LATENESS INTERVAL '7' MILLISECOND AS SELECT count(*) FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' HOUR) GROUP BY window_start;
CREATE FEATURE VIEW zero AS SELECT count(*) FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '0' SECOND) GROUP BY window_start;
CREATE FEATURE VIEW no_unit AS SELECT count(*) FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '10') GROUP BY window_start;
CREATE FEATURE VIEW month AS SELECT count(*) FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MONTH) GROUP BY window_start;
CREATE FEATURE VIEW session AS SELECT count(*) FROM SESSION(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW two_windows AS SELECT count(*) FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY tumble(event_time, INTERVAL '1' MINUTE);
CREATE FEATURE VIEW selected_window AS SELECT tumble(event_time, INTERVAL '1' MINUTE) AS w, count(*) AS n FROM m GROUP BY tumble(event_time, INTERVAL '1' MINUTE);

CREATE FEATURE VIEW columns AS
SELECT servicename, avg(valu) AS a, foo(value) AS b, sum("text") AS c, x.value AS d, max(value.x) AS e
FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) WHERE metric_nme = 'x' GROUP BY service_nam, window_start;
CREATE FEATURE VIEW star AS SELECT * FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW duplicate AS SELECT count(*) AS n, sum(value) AS n FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW ordered AS SELECT count(*) AS n FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start ORDER BY n LIMIT 5;
CREATE FEATURE VIEW is_distinct AS SELECT DISTINCT count(*) AS n FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW joined AS SELECT count(*) AS n FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) JOIN m ON true GROUP BY window_start;
CREATE FEATURE VIEW united AS SELECT count(*) AS n FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start UNION ALL SELECT 1;
CREATE FEATURE VIEW nested AS SELECT count(*) AS n FROM (SELECT * FROM m) GROUP BY window_start;
CREATE FEATURE VIEW subquery AS SELECT count(*) AS n FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) WHERE value > (SELECT 1) GROUP BY window_start;
CREATE FEATURE VIEW rolled AS SELECT count(*) AS n FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY ROLLUP(service_name), window_start;
CREATE FEATURE VIEW over_view AS SELECT count(*) AS n FROM TUMBLE(TABLE star, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;

CREATE FEATURE VIEW aggregates AS
SELECT median(value) AS a, array_agg(value) AS b, first_value(value) AS c, sum(value ORDER BY value) AS d, last_value(value ORDER BY event_time) AS e,
  avg(value) OVER (PARTITION BY service_name) AS f, now() AS g, random() AS h, quantile(value, 1.5) AS i
FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW quantiles AS SELECT quantile(value, value) AS i, quantile(value, 7) AS j FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW medians AS SELECT median(value) AS a, count(*) AS n, array_agg(value) AS b FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW misplaced AS SELECT service_name, count(*) AS n, n * 2 AS m, sum(value) FILTER (WHERE event_time > window_start) AS late
FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) WHERE count(*) > 1 AND window_start > 5 GROUP BY service_name, window_start;
CREATE FEATURE VIEW not_grouped AS SELECT service_name, value FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY service_name, window_start;
CREATE FEATURE VIEW types AS SELECT avg(service_name) AS a FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW filter_type AS SELECT count(*) AS a FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) WHERE value GROUP BY window_start;
CREATE FEATURE VIEW filter_map AS SELECT count(*) AS a FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) WHERE attributes = 5 GROUP BY window_start;
CREATE FEATURE VIEW map_key AS SELECT count(*) AS a FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY attributes, window_start;
CREATE FEATURE VIEW window_key AS SELECT count(*) AS a FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY date_trunc('hour', window_start), window_start;
CREATE FEATURE VIEW syntax AS SELECT count(* FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start;
CREATE FEATURE VIEW trailing AS SELECT count(*) FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY window_start EMITT ON WINDOW CLOSE;
CREATE FEATURE VIEW grouped_by_all AS SELECT service_name, count(*) AS n FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY ALL;
