CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 'app', format = 'json');
CREATE FEATURE VIEW v AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
CREATE SINK nothing FROM w WITH (topic = 'x');
CREATE SINK nowhere FROM v WITH (format = 'json');
CREATE SINK again FROM v WITH (topic = 'app');
CREATE SINK strange FROM v WITH (topic = 'x', format = 'xml', partitions = 3);
CREATE SINK bad FROM v WITH (topic = 'no topic', connector = 'file');
CREATE SINK bare FROM v;
CREATE SINK again FROM v WITH (topic = 'y');
