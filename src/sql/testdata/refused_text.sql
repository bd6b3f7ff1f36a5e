-- a string that never ends
CREATE SOURCE a WITH (topic='a, format=heartbeat);
