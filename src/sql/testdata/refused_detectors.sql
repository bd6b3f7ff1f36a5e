CREATE SOURCE beats WITH (topic='b', format='heartbeat');
CREATE SOURCE broken WITH (topic='b', format='hartbeat');
CREATE SOURCE m WITH (topic='m', format='otlp_metrics');
CREATE FEATURE VIEW v AS
SELECT service_name AS service, scope_name, window_start, window_end, avg(value) AS mean_ms, max(event_time) AS latest, count(*) AS n
FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY service_name, scope_name, window_start, window_end;
CREATE FEATURE VIEW keyless AS
SELECT avg(value) AS score FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY service_name, window_start;

CREATE DETECTOR a ON v KEY (service, scope_name) FEATURES (mean_ms) USING izolation_forest;
CREATE DETECTOR b ON v KEY (service, scope_name) FEATURES (mean_ms) USING isolation_forest WITH (n_estimatrs = 5);
CREATE DETECTOR c ON v KEY (service, scope_name) FEATURES (mean, latest, service, n, n) USING robust_zscore;
CREATE DETECTOR d ON v KEY (service) FEATURES (n) USING robust_zscore;
CREATE DETECTOR e ON v KEY (service, n) FEATURES (n) USING robust_zscore;
CREATE DETECTOR f ON v KEY (service, servce) FEATURES (n) USING robust_zscore;
CREATE DETECTOR g ON w KEY (service) FEATURES (n) USING robust_zscore;
CREATE DETECTOR h ON beats KEY (service) FEATURES (n) USING robust_zscore;
CREATE DETECTOR i ON beats USING silence;
CREATE DETECTOR j ON beats KEY (servce) USING silence WITH (timeout = '30 parsec');
CREATE DETECTOR k ON broken KEY (service) USING silence;
CREATE DETECTOR l ON v KEY (service, scope_name) USING robust_zscore;
CREATE DETECTOR m ON keyless FEATURES (score) USING robust_zscore;
CREATE DETECTOR n ON v KEY (service scope_name) USING silence;
CREATE DETECTOR o ON v KEY (service, scope_name) FEATURES (n) USNG robust_zscore;
CREATE DETECTOR p ON v KEY (service, scope_name) FEATURES (n) USING robust_zscore WITH (warmup = n);
CREATE DETECTOR q ON m KEY (attributes) USING silence;
