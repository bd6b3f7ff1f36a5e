CREATE SOURCE app (service STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE FEATURE VIEW a AS SELECT window_end, count(*) AS n FROM SESSION(app, ts, INTERVAL '5 s', INTERVAL '1 s') GROUP BY window_end;
CREATE FEATURE VIEW b AS SELECT window_end, count(*) AS n FROM SESSION(app, ts, INTERVAL '0 s') GROUP BY window_end;
CREATE FEATURE VIEW c AS SELECT window_end, count(*) AS n FROM SESSION(app, ts, INTERVAL '5 s') GROUP BY window_end EMIT EVERY INTERVAL '1 s';
CREATE FEATURE VIEW d FILL MISSING WITH NULL FOR 2 WINDOWS AS SELECT window_end, count(*) AS n FROM SESSION(app, ts, INTERVAL '5 s') GROUP BY window_end;
CREATE FEATURE VIEW e AS SELECT window_end, count(*) AS n FROM TUMBLE(app, ts, INTERVAL '5 s') GROUP BY window_end EMIT EVERY INTERVAL '5 s';
CREATE FEATURE VIEW f AS SELECT window_end, count(*) AS is_final FROM TUMBLE(app, ts, INTERVAL '5 s') GROUP BY window_end EMIT EVERY INTERVAL '1 s';
CREATE FEATURE VIEW g AS SELECT window_end, count(*) AS n FROM TUMBLE(app, ts, INTERVAL '5 s') GROUP BY window_end EMIT ON UPDATE;
INCLUDE 'a.sql', 'b.sql';
