CREATE SOURCE m WITH (topic='m', format='otlp_metrics');
CREATE FEATURE VIEW v AS
SELECT service_name, window_start, window_end, avg(value) AS mean_ms, count(*) AS n
FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY service_name, window_start, window_end;
CREATE DETECTOR d ON v KEY (service_name) FEATURES (mean_ms) USING robust_zscore;
CREATE DETECTOR broken ON v KEY (service_name) FEATURES (mean_ms) USING robust_zscores;

CREATE POLICY a ON e WHEN score > 1 DO ACTION 'restart' TARGET service_name;
CREATE POLICY b ON broken WHEN score > 1 DO ACTION 'restart' TARGET service_name;
CREATE POLICY c ON d WHEN scor > 1 AND n > 5 DO ACTION 'restart' TARGET service;
CREATE POLICY d ON d WHEN score DO ACTION 'restart';
CREATE POLICY e ON d WHEN score > 1 FOR 5 OF 3 WINDOWS DO ACTION 'restart';
CREATE POLICY f ON d WHEN score > 1 MODE PILOT DO ACTION 'restart';
CREATE POLICY g ON d WHEN score > 1 DO ACTION 'restart' PARAMS (reason = mean_ms);
CREATE POLICY h ON d WHEN score > 1 DO ACTION 'restart now!';
CREATE POLICY i ON d WHEN score > 1;
CREATE POLICY j ON d WHEN score > 1 DO RESTART;
CREATE POLICY k ON d WHEN score > 1 COOLDOWN 10 MINUTES DO ACTION 'restart';
CREATE POLICY l ON d WHEN score > 1 LIMIT 0 ACTIONS PER INTERVAL '1' HOUR DO ACTION 'restart';
CREATE POLICY m ON d WHEN score > 1 LIMIT 1 ACTIONS PER INTERVAL '0' HOUR DO ACTION 'restart';
CREATE POLICY n ON d WHEN avg(score) > 1 AND now() > window_end DO ACTION 'restart';
CREATE POLICY o ON d WHEN FOR 3 WINDOWS DO ACTION 'restart';
CREATE POLICY p ON d WHEN score > 1 DO ACTION 'restart' DO ACTION 'drain';
CREATE POLICY q ON d WHEN score > 1 DO LADDER ();
CREATE POLICY r ON d WHEN score > 'high' DO ACTION 'restart';
CREATE POLICY s ON d WHEN score > 1 AND (n > 5 DO ACTION 'restart';
CREATE POLICY t ON d WHEN score > 1 DO ACTION 'restart' EXPIRE AFTER INTERVAL '2' MINUTE;
CREATE POLICY u ON d WHEN score > 1 DO ACTION 'restart' EXPIRES AFTER INTERVAL '0' MINUTE INTO 'no topic';
