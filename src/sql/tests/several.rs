//! Everything that is wrong with a text is said at once, each thing at its own place, and nothing that only follows from another.

use super::Algorithms;
use crate::{Diagnostics, compile};

/// A text with its mistakes between « and », and what is said of each: a part of the message, and of the help.
struct Case {
    text: &'static str,
    said: &'static [(&'static str, &'static str)],
}

/// Declared in front of every text that has no source of its own.
const SOURCES: &str = "
CREATE SOURCE s (service STRING, ms DOUBLE, status INT, ok BOOLEAN, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
WITH (topic = 's', format = 'json');
CREATE SOURCE metrics WITH (topic = 'm', format = 'otlp_metrics');
CREATE FEATURE VIEW good AS SELECT service, window_end, avg(ms) AS mean, count(*) AS n
FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY service, window_end;
CREATE DETECTOR fine ON good KEY (service) FEATURES (mean) USING robust_zscore;
";

const CASES: &[Case] = &[
    // The window, an aggregate, a column, an interval.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, window_end, «stdev»(ms) AS a, avg(«mz») AS b
               FROM «TUMBEL»(TABLE s, DESCRIPTOR(ts), INTERVAL '1' «MINUT») WHERE «stauts» = 500 GROUP BY service, window_end;",
        said: &[
            ("unknown function `stdev`", "`stddev`"),
            ("unknown column `mz`", "`ms`"),
            ("unknown window `TUMBEL`", "`TUMBLE`"),
            ("expected a unit of time such as SECOND, found `MINUT`", "`MINUTE`"),
            ("unknown column `stauts`", "`status`"),
        ],
    },
    // Intervals, each by itself.
    Case {
        text: "CREATE FEATURE VIEW v ALLOW LATENESS INTERVAL «'30'» FILL MISSING WITH NULL FOR «0» WINDOWS LATE DATA TO «'no topic'» AS
               SELECT service, window_end, sum(«mss») AS a FROM HOP(TABLE s, DESCRIPTOR(ts), INTERVAL «'10 sconds'», INTERVAL '1' «HUOR»)
               GROUP BY service, window_end EMIT EVERY INTERVAL «'1 parsec'»;",
        said: &[
            ("`30` has no unit", "write INTERVAL"),
            ("a number of windows must be a whole number", ""),
            ("`no topic` is not a name of a topic", ""),
            ("unknown column `mss`", "`ms`"),
            ("`sconds` is not a unit of time", "`seconds`"),
            ("found `HUOR`", "`HOUR`"),
            ("`parsec` is not a unit of time", ""),
        ],
    },
    // Keywords.
    Case {
        text: "«CREAT» «FEATUR» VIEW v «ALOW» LATENESS INTERVAL '1' SECOND AS «SELCT» service, window_end, count(*) AS n
               «FORM» TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) «WEHRE» ms > «mz» «GRUOP» BY service, window_end
               «HAVIN» count(*) > 1 «EMITT» ON «WINDW» CLOSE;",
        said: &[
            ("expected `CREATE`", "`CREATE`"),
            ("found `FEATUR`", "`FEATURE`"),
            ("found `ALOW`", "`ALLOW`"),
            ("expected SELECT", "`SELECT`"),
            ("unknown keyword `FORM`", "`FROM`"),
            ("unknown keyword `WEHRE`", "`WHERE`"),
            ("unknown column `mz`", "`ms`"),
            ("unknown keyword `GRUOP`", "`GROUP`"),
            ("unknown keyword `HAVIN`", "`HAVING`"),
            ("expected EMIT", "`EMIT`"),
            ("expected `WINDOW`", "`WINDOW`"),
        ],
    },
    // Names of sources: columns are checked against the one that is meant.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT «servce_name», window_end, avg(value) AS a, avg(«valu») AS b
               FROM TUMBLE(TABLE «metrcs», «DESCRIPTR»(event_time), INTERVAL '1' MINUTE) GROUP BY service_name, window_end;",
        said: &[
            ("unknown column `servce_name`", "`service_name`"),
            ("unknown column `valu`", "`value`"),
            ("unknown source `metrcs`", "`metrics`"),
            ("expected `DESCRIPTOR`", "`DESCRIPTOR`"),
        ],
    },
    // Of a source that is nowhere, nothing is known: its columns are not blamed.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT host, window_end, avg(cpu) AS a, «stdev»(cpu) AS b
               FROM TUMBLE(TABLE «warehouse», DESCRIPTOR(at), INTERVAL «'1'») WHERE region = 'eu' GROUP BY host, window_end;",
        said: &[
            ("unknown function `stdev`", "`stddev`"),
            ("unknown source `warehouse`", "declare it before"),
            ("`1` has no unit", ""),
        ],
    },
    // Types, each expression by itself.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, window_end, «avg(service) AS a», «sum(ok) AS b», count(*) AS n, «quantile»(ms, 7) AS q
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) WHERE «ms» GROUP BY service, window_end HAVING «count»(*);",
        said: &[
            ("`avg` does not take a string", "CAST"),
            ("`sum` does not take a boolean", ""),
            ("7 is not a share between 0 and 1", ""),
            ("a condition is true or false, not a number", "compare"),
            ("a condition is true or false, not a number", "compare"),
        ],
    },
    // A mistake in one expression hides none in another, and a name that it gives is not unknown.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT «lowr»(service) AS who, window_end, sum(ms) / «AS» share, avg(«mz») + avg(service) AS x, «sum(service) AS t»
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY who, window_end HAVING share > 1;",
        said: &[
            ("unknown function `lowr`", "`lower`"),
            ("expected an expression, found `AS`", ""),
            ("unknown column `mz`", "`ms`"),
            ("`sum` does not take a string", ""),
        ],
    },
    // GROUP BY by position, operands and arguments.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, window_end, «sum(ms, status) AS a», «avg() AS b», «ms + service» AS c, «TUMBLE_START»(ts) AS d,
                 «max(ms) FILTER (WHERE ok = 1) AS e»
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) WHERE service = «\"web\"» GROUP BY 1, 2, «9»;",
        said: &[
            ("`sum` takes 1 argument, not 2", ""),
            ("`avg` takes an argument, not none", ""),
            ("a number and a string do not go together", "CAST"),
            ("unknown function `TUMBLE_START`", "window_start"),
            ("a boolean and a number do not go together", "NOT x"),
            ("unknown column `web`", "single quotes: 'web'"),
            ("GROUP BY 9 is no column of the SELECT, which has 7", ""),
        ],
    },
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, window_end, count(*) AS n «sum»(ms) AS a
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY service, window_end;
               CREATE FEATURE VIEW w AS SELECT service, window_end, count(*) AS n
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) WHERE ms > 1 AND «GROUP» BY service, window_end;
               CREATE FEATURE VIEW x AS SELECT service, window_end, count(*) AS n
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) «GROUP» service, window_end;
               CREATE FEATURE VIEW y AS SELECT service «window_end», count(*) AS n
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY service, window_end;",
        said: &[
            ("expected the end of the SELECT, found `sum`", "a comma missing"),
            ("expected an expression, found `GROUP`", ""),
            ("expected `BY` behind `GROUP`", ""),
            ("`window_end` is the window's, not `service`", "a comma missing"),
        ],
    },
    // What a function says only when it runs.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, window_end, «stddev»(DISTINCT ms) AS a, «bit_xor»(DISTINCT status) AS b, «stddev(service) AS c»,
                 «corr(ok, service) AS d», «every»(ok) AS e
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY service, window_end;",
        said: &[
            ("DISTINCT", ""),
            ("`bit_xor(DISTINCT …)` is not supported", ""),
            ("`stddev` does not take a string", "CAST"),
            ("`corr` does not take a boolean and a string", ""),
            ("unknown function `every`", "bool_and(x)"),
        ],
    },
    // Parentheses, where it is clear where they belong.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, window_end, count«(»* AS n, «cuont»(*) AS m
               FROM TUMBLE«(»TABLE s, DESCRIPTOR(ts), INTERVAL '1' «MINUT» WHERE «mz» > 1 GROUP BY service, window_end;
               CREATE FEATURE VIEW u AS SELECT service, window_end, sum(ms)«)» AS a, max(«mz») AS b
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY service, window_end;
               CREATE FEATURE VIEW w AS SELECT service, window_end, quantile«(»ms, 0.9 AS q
               FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUT) GROUP BY service, window_end;",
        said: &[
            ("this `(` is never closed", ""),
            ("unknown function `cuont`", "`count`"),
            ("this `(` is never closed", ""),
            ("found `MINUT`", "`MINUTE`"),
            ("unknown column `mz`", "`ms`"),
            ("this `)` closes nothing", ""),
            ("unknown column `mz`", "`ms`"),
            ("this `(` is never closed", ""),
        ],
    },
    // Sources: every column, option and clause.
    Case {
        text: "CREATE SOURCE a (x «STRNG», y DOUBLE, z BIGINT «NOT» NULL, k DOUBLE METADATA FROM «'kye'», ts TIMESTAMP(«4»),
                 WATERMARK FOR ts AS ts - INTERVAL '5' «SECND») WITH («topik» = 'a', format = «'jsn'», 'scan.startup.mode' = «'erliest'»);
               CREATE FEATURE VIEW v AS SELECT x, window_end, avg(y) AS a, sum(«w») AS b FROM TUMBLE(a, ts, INTERVAL '1 min') GROUP BY x, window_end;",
        said: &[
            ("unknown type `STRNG`", "`STRING`"),
            ("columns have no constraints", ""),
            ("a record has no `kye`", "`key`"),
            ("TIMESTAMP(4) is not supported", ""),
            ("found `SECND`", "`SECOND`"),
            ("unknown option `topik`", "`topic`"),
            ("unknown format `jsn`", "`json`"),
            ("unknown startup mode `erliest`", "`earliest`"),
            ("unknown column `w`", ""),
        ],
    },
    Case {
        text: "CREATE SOURCE a «WATERMRK» FOR event_time AS event_time - INTERVAL '5' SECOND IDLE «TIMOUT» «INTERVAL '0' SECOND»
               WITH (topic = «a»/b, «fromat» = 'otlp_metrics');",
        said: &[
            ("found `WATERMRK`", "`WATERMARK`"),
            ("expected `TIMEOUT`", "`TIMEOUT`"),
            ("an idle timeout must be longer than zero", ""),
            ("expected a literal", "'a'"),
            ("unknown option `fromat`", "`format`"),
        ],
    },
    // Detectors, on views with and without mistakes.
    Case {
        text: "CREATE DETECTOR a ON good KEY («servic», «mean») FEATURES («maen», «service») USING «robust_zscor» WITH («warmp» = 3, warmup = 10);
               CREATE FEATURE VIEW bad AS SELECT service, window_end, avg(«mz») AS mean FROM TUMBLE(s, ts, INTERVAL '1 min') GROUP BY service, window_end;
               CREATE DETECTOR b ON bad KEY (service) FEATURES (mean, «maen») USING «isolation_forst» WITH (n_estimators = 5);
               CREATE DETECTOR c ON «god» KEY (service) «FEATURE» (mean) USING robust_zscore;",
        said: &[
            ("view `good` has no column `servic`", "`service`"),
            ("`mean` is not a grouping column", ""),
            ("view `good` has no column `maen`", "`mean`"),
            ("feature `service` is a string", ""),
            ("unknown detector `robust_zscor`", "`robust_zscore`"),
            ("has no option `warmp`", "`warmup`"),
            ("unknown column `mz`", "`ms`"),
            ("view `bad` has no column `maen`", "`mean`"),
            ("unknown detector `isolation_forst`", "`isolation_forest`"),
            ("unknown view or source `god`", "`good`"),
            ("found `FEATURE`", "`FEATURES`"),
        ],
    },
    // Policies: every clause, also on a detector that is wrong or nowhere.
    Case {
        text: "CREATE POLICY a ON fine WHEN «scor» > 1 AND «nn» > 5 FOR «5 OF 3» WINDOWS CLEAR WHEN «meen» < 5 «COLDOWN» INTERVAL '10' «MINUTS»
                 LIMIT «0» ACTIONS PER INTERVAL '1' HOUR DO ACTION «'restart now!'» TARGET «servic» EXPIRES AFTER «INTERVAL '0' MINUTE» MODE «PILOT»;
               CREATE DETECTOR broken ON good KEY (service) FEATURES (mean) USING «robust_zscores»;
               CREATE POLICY b ON broken WHEN «scor» > 1 DO ACTION 'restart' TARGET «servce»;
               CREATE POLICY c ON «fin» WHEN «lowr»(x) = 'a' DO «RESTART»;",
        said: &[
            ("unknown column `scor`", "`score`"),
            ("unknown column `nn`", "`n`"),
            ("5 of 3 windows can never be met", "FOR 3 OF 5"),
            ("unknown column `meen`", "`mean`"),
            ("found `COLDOWN`", "`COOLDOWN`"),
            ("found `MINUTS`", "`MINUTES`"),
            ("a number of actions must be", ""),
            ("`restart now!` is not a name of an action", ""),
            ("`servic` is not a KEY column", "`service`"),
            ("an expiry must be longer", ""),
            ("unknown mode `PILOT`", ""),
            ("unknown detector `robust_zscores`", "`robust_zscore`"),
            ("unknown column `scor`", "`score`"),
            ("`servce` is not a KEY column", "`service`"),
            ("unknown detector `fin`", "`fine`"),
            ("unknown function `lowr`", "`lower`"),
            ("found `RESTART`", ""),
        ],
    },
    // Sinks.
    Case {
        text: "CREATE SINK a «FORM» good WITH (topic = 'a', format = «'jsno'», «formt» = 'json');
               CREATE SINK b FROM «godd» WITH (topic = 'b', connector = «'kafak'»);
               CREATE SINK c FROM LATE «ROW» OF good WITH («topc» = 'c');",
        said: &[
            ("expected `FROM`", "`FROM`"),
            ("unknown format `jsno` of a sink", "`json`"),
            ("unknown option `formt`", "`format`"),
            ("there is no view or detector `godd`", "`good`"),
            ("unknown connector `kafak`", ""),
            ("expected `ROWS`", "`ROWS`"),
            ("unknown option `topc`", "`topic`"),
        ],
    },
    // Views of rows, and windows over one with mistakes.
    Case {
        text: "CREATE VIEW r AS SELECT ts, service AS who, «lowr»(service) AS low, ms FROM s WHERE «stats» > 1
                 UNION ALL SELECT event_time, «servce_name», metric_name, «valu» FROM «metrcs»;
               CREATE FEATURE VIEW v AS SELECT who, window_end, avg(ms) AS a, max(«low2») AS l, «stdev»(ms) AS d
               FROM HOP(r, ts, INTERVAL '10 s', INTERVAL «'1 mn'») GROUP BY who, window_end;",
        said: &[
            ("unknown function `lowr`", "`lower`"),
            ("unknown column `stats`", "`status`"),
            ("unknown column `servce_name`", "`service_name`"),
            ("unknown column `valu`", "`value`"),
            ("unknown source `metrcs`", "`metrics`"),
            ("unknown column `low2`", "`low`"),
            ("unknown function `stdev`", "`stddev`"),
            ("`mn` is not a unit of time", ""),
        ],
    },
    // Views over views.
    Case {
        text: "CREATE FEATURE VIEW w AS SELECT service, window_end, max(ms) AS worst FROM TUMBLE(s, ts, INTERVAL '1' MINUTE) GROUP BY service, window_end;
               CREATE FEATURE VIEW both AS SELECT g.service, g.window_end, g.«maen» AS a, «rond»(w.worst) AS b
               FROM good g JOIN w ON g.service = w.service AND g.window_end = w.window_end WHERE w.«wrst» > 1;",
        said: &[
            ("unknown column `maen`", "`mean`"),
            ("unknown function `rond`", "`round`"),
            ("unknown column `wrst`", "`worst`"),
        ],
    },
    // The window in GROUP BY.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, window_start, «cont»(*) AS n FROM s
               WHERE status >= 500 «ADN» ms > 1 GROUP BY service, «tumbel»(ts, INTERVAL '1' «MIUTE»);",
        said: &[
            ("unknown function `cont`", "`count`"),
            ("unknown keyword `ADN`", "`AND`"),
            ("unknown window `tumbel`", "`TUMBLE`"),
            ("found `MIUTE`", "`MINUTE`"),
        ],
    },
    // A statement that is none, one that is not closed, and the others.
    Case {
        text: "«DROP» SOURCE s;
               CREATE FEATURE VIEW v AS SELECT service, window_end, count«(»* AS n FROM TUMBLE(s, ts, INTERVAL '1 min') GROUP BY service, window_end;
               CREATE DETECTOR d ON v KEY (service) FEATURES (n) USING robust_zscore;
               CREATE DETECTOR e ON good KEY (service) FEATURES («m») USING robust_zscore;",
        said: &[
            ("expected `CREATE`", ""),
            ("this `(` is never closed", ""),
            ("view `good` has no column `m`", ""),
        ],
    },
    // A quote that is never closed: what comes before it is checked, what comes after it is not blamed.
    Case {
        text: "CREATE DETECTOR e ON later KEY (service) FEATURES (n) USING robust_zscore;
               CREATE DETECTOR f ON good KEY («servic») FEATURES (mean) USING robust_zscore;
               CREATE FEATURE VIEW later AS SELECT service, window_end, count(*) AS n FROM TUMBLE(s, ts, INTERVAL «'»1 min) GROUP BY service, window_end;",
        said: &[
            ("view `good` has no column `servic`", "`service`"),
            ("unterminated string literal", ""),
        ],
    },
    // What only follows is not said: the detector, the policy and the sink of a view that is wrong.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, window_end, avg(ms) AS mean «mean2» FROM TUMBLE(s, ts, INTERVAL '1 min') GROUP BY service, window_end;
               CREATE DETECTOR d ON v KEY (service) FEATURES (mean) USING robust_zscore;
               CREATE POLICY p ON d WHEN score > 1 DO ACTION 'restart' TARGET service;
               CREATE SINK k FROM v WITH (topic = 'k');",
        said: &[("expected the end of the SELECT, found `mean2`", "")],
    },
    // Without a GROUP BY, or with one of which a part is not known, no column is blamed for not being in it.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, window_end, avg(ms) AS mean FROM TUMBLE(TABLE «s», DESCRIPTOR(ts), INTERVAL '1' MINUTE);
               CREATE FEATURE VIEW w AS SELECT service, status, window_end, «sum(ok) AS t»
               FROM TUMBLE(s, ts, INTERVAL '1 min') GROUP BY «grouping_key», window_end;
               CREATE FEATURE VIEW x AS SELECT service, «status», window_end FROM TUMBLE(s, ts, INTERVAL '1 min') GROUP BY service, window_end;",
        said: &[
            ("GROUP BY without the window", "window_start and window_end"),
            ("`sum` does not take a boolean", ""),
            ("unknown column `grouping_key`", "there are service"),
            ("`status` is neither grouped by nor aggregated", "last(status)"),
        ],
    },
    // Keywords inside of expressions, and a source of which the format is not known: its views have no columns to blame, and their
    // detectors none either.
    Case {
        text: "CREATE SOURCE o WITH (topic = 'o', «fomrat» = 'otlp_metrics');
               CREATE FEATURE VIEW v AS SELECT service_name, window_end, sum(value) «FITLER» (WHERE metric_name = 'a') AS a,
                 count(«DISITNCT» unit) FILTER («WEHRE» value > 1 «ADN» value < 5) AS b, CASE «WEHN» value > 1 THEN 1 ELSE 0 END AS c
               FROM TUMBLE(o, event_time, INTERVAL '1 min') GROUP BY service_name, window_end;
               CREATE DETECTOR d ON v KEY (service_name) FEATURES (a, b, «ab») USING robust_zscore;
               CREATE FEATURE VIEW w AS SELECT «serviec», window_end, count(*) AS n FROM TUMBLE(s, ts, INTERVAL '1 min') GROUP BY service, window_end;
               CREATE DETECTOR e ON w KEY («servic») FEATURES (n) USING robust_zscore;
               CREATE POLICY p ON e WHEN n > 1 DO ACTION 'restart' TARGET service;",
        said: &[
            ("unknown option `fomrat`", "`format`"),
            ("unknown keyword `FITLER`", "`FILTER`"),
            ("unknown keyword `DISITNCT`", "`DISTINCT`"),
            ("unknown keyword `WEHRE`", "`WHERE`"),
            ("unknown keyword `ADN`", "`AND`"),
            ("unknown keyword `WEHN`", "`WHEN`"),
            ("view `v` has no column `ab`", ""),
            ("unknown column `serviec`", "`service`"),
            ("view `w` has no column `servic`", "`service`"),
        ],
    },
    // A semicolon is missing: both statements are there.
    Case {
        text: "CREATE SINK k FROM «gud» WITH (topic = 'k')
               «CREATE» DETECTOR d ON good KEY (service) FEATURES («maen») USING robust_zscore;",
        said: &[
            ("there is no view or detector `gud`", "`good`"),
            ("expected `;`, found `CREATE`", "ends with `;`"),
            ("view `good` has no column `maen`", "`mean`"),
        ],
    },
    // As other systems write it.
    Case {
        text: "CREATE TABLE t «AS» SELECT service, avg(ms) FROM s WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY service;
               «INSERT» INTO out SELECT * FROM good;
               CREATE FEATURE VIEW v AS SELECT service, window_end, «p99»(ms) AS p, «CASE» WHEN ms > 1 THEN 1 AS c
               FROM «HOPPING»(TABLE s, DESCRIPTOR(ts), «'1 minute'») GROUP BY service, window_end EMIT «CHANGES»;
               CREATE POLICY p ON «good» WHEN score > 1 COOLDOWN «'10 min'» DO ACTION 'restart' TARGET service;
               CREATE SINK k FROM good «INTO» KAFKA WITH (topic = 'k');",
        said: &[
            ("found `AS`", "CREATE FEATURE VIEW"),
            ("expected `CREATE`, found `INSERT`", "CREATE SINK"),
            ("unknown function `p99`", "quantile(x, 0.99)"),
            ("this CASE has no END", "END"),
            ("HOPPING windows are not supported", "use TUMBLE"),
            ("expected `INTERVAL`", "INTERVAL '1 minute'"),
            ("found `CHANGES`", "EMIT EVERY"),
            ("unknown detector `good`", "is a view"),
            ("expected `INTERVAL`", "INTERVAL '10 min'"),
            ("expected `WITH`, found `INTO`", "CREATE SINK k FROM good WITH"),
        ],
    },
    // A key that is misspelt is the one that is meant, for what SELECT names.
    Case {
        text: "CREATE FEATURE VIEW v AS SELECT service, status, window_end, count(*) AS n, «sum(service) AS t»
               FROM TUMBLE(s, ts, INTERVAL '1 min') GROUP BY «servce», status, «windw_end»;",
        said: &[
            ("`sum` does not take a string", ""),
            ("unknown column `servce`", "`service`"),
            ("unknown column `windw_end`", "`window_end`"),
        ],
    },
];

/// The text without its marks, and where they were.
fn unmarked(marked: &str) -> (String, Vec<(usize, usize)>) {
    let (mut text, mut places, mut start) = (String::new(), Vec::new(), 0);
    for c in marked.chars() {
        match c {
            '«' => start = text.len(),
            '»' => places.push((start, text.len())),
            c => text.push(c),
        }
    }
    (text, places)
}

fn found(text: &str) -> Diagnostics {
    compile("several", text, &Algorithms)
        .err()
        .unwrap_or(Diagnostics(Vec::new()))
}

#[test]
fn everything_wrong_is_said_at_once_and_in_its_place() {
    let mut wrong = String::new();
    for case in CASES {
        let (own, places) = unmarked(case.text);
        let text = format!("{SOURCES}{own}");
        let places: Vec<(usize, usize)> = places
            .iter()
            .map(|(a, b)| (a + SOURCES.len(), b + SOURCES.len()))
            .collect();
        let diagnostics = found(&text);
        let said: Vec<(usize, usize)> = diagnostics
            .0
            .iter()
            .map(|found| (found.span.start, found.span.end))
            .collect();
        let fits = diagnostics.0.iter().zip(case.said).all(|(found, (message, help))| {
            found.message.contains(message) && found.help.as_deref().unwrap_or_default().contains(help)
        });
        if said != places || !fits || said.len() != case.said.len() {
            wrong.push_str(&diagnostics.render("several.sql", &text, false));
            wrong.push_str(&format!("── expected at {places:?}, said at {said:?}\n\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A pipeline in which every statement is right.
const RIGHT: &str = "
CREATE SOURCE app (service STRING, ms DOUBLE, status INT, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND IDLE TIMEOUT INTERVAL '30' SECOND)
WITH (topic = 'app', format = 'json', 'scan.startup.mode' = 'earliest');
CREATE FEATURE VIEW load ALLOW LATENESS INTERVAL '10' SECOND LATE DATA TO late_rows AS
SELECT service, window_end, avg(ms) AS mean, count(*) FILTER (WHERE status >= 500) AS failed, max(ms) AS worst
FROM HOP(TABLE app, DESCRIPTOR(ts), INTERVAL '20' SECOND, INTERVAL '1' MINUTE)
WHERE status > 0 GROUP BY service, window_end HAVING count(*) > 3 EMIT ON WINDOW CLOSE;
CREATE DETECTOR slow ON load KEY (service) FEATURES (mean, failed) USING robust_zscore WITH (warmup = 20);
CREATE POLICY heal ON slow WHEN score > 4 AND worst > 100 FOR 3 OF 5 WINDOWS CLEAR WHEN score < 1 COOLDOWN INTERVAL '15' MINUTE
  DO ACTION 'restart' TARGET service MODE APPROVE;
CREATE SINK loads FROM load WITH (topic = 'loads', format = 'cloudevents');
";

/// Mistakes in it, each of which is one by itself: what is written, and what is written instead.
const MISTAKES: &[(&str, &str)] = &[
    ("IDLE TIMEOUT", "IDEL TIMEOUT"),
    ("'30' SECOND", "'30' SECNOD"),
    ("'scan.startup.mode'", "'scan.startup.moed'"),
    ("format = 'json'", "formta = 'json'"),
    ("CREATE FEATURE VIEW load", "CREATE FAETURE VIEW load"),
    ("ALLOW LATENESS", "ALLOW LATNESS"),
    ("'10' SECOND LATE", "'10 elephants' LATE"),
    ("avg(ms)", "avgg(ms)"),
    ("status >= 500", "sttus >= 500"),
    ("max(ms)", "max(mss)"),
    ("FROM HOP", "FORM HOP"),
    ("HOP(TABLE", "HOPP(TABLE"),
    ("DESCRIPTOR(ts)", "DESCRIPTOR(tss)"),
    ("'20' SECOND", "'20' SECONDD"),
    ("WHERE status > 0", "WHERE status"),
    ("HAVING count(*) > 3", "HAVING cuont(*) > 3"),
    ("WINDOW CLOSE", "WINDOW CLOES"),
    ("KEY (service)", "KYE (service)"),
    ("FEATURES (mean,", "FEATURES (maen,"),
    ("robust_zscore", "robust_score"),
    ("warmup", "wramup"),
    ("worst > 100", "worts > 100"),
    ("3 OF 5", "5 OF 3"),
    ("COOLDOWN", "COOLDWON"),
    ("'15' MINUTE", "'15' MINTUE"),
    ("ACTION 'restart'", "ACTION 'restart now'"),
    ("TARGET service", "TARGET servcie"),
    ("MODE APPROVE", "MODE APROVE"),
    ("SINK loads FROM load", "SINK loads FROM laod"),
    ("'cloudevents'", "'cloudevnts'"),
];

fn with_mistakes(mistakes: &[&(&str, &str)]) -> Vec<(String, Option<String>)> {
    let mut text = RIGHT.to_owned();
    for (right, wrong) in mistakes {
        assert_eq!(text.matches(right).count(), 1, "{right} in {text}");
        text = text.replace(right, wrong);
    }
    let mut said: Vec<_> = found(&text)
        .0
        .into_iter()
        .map(|found| (found.message, found.help))
        .collect();
    said.sort();
    said
}

#[test]
fn two_mistakes_are_both_said_as_each_is_alone() {
    assert_eq!(with_mistakes(&[]), []);
    let alone: Vec<_> = MISTAKES.iter().map(|mistake| with_mistakes(&[mistake])).collect();
    let mut wrong = String::new();
    for (mistake, said) in MISTAKES.iter().zip(&alone) {
        if said.len() != 1 {
            wrong.push_str(&format!("{mistake:?}: {said:#?}\n"));
        }
    }
    for first in 0..MISTAKES.len() {
        // A third of all pairs, every mistake with ten others: the test stays fast.
        for second in (first + 1..MISTAKES.len()).filter(|second| (first + second) % 3 == 0) {
            let mut expected = [alone[first].clone(), alone[second].clone()].concat();
            expected.sort();
            let said = with_mistakes(&[&MISTAKES[first], &MISTAKES[second]]);
            if said != expected {
                wrong.push_str(&format!(
                    "{:?} and {:?}: {said:#?}\n",
                    MISTAKES[first], MISTAKES[second]
                ));
            }
        }
    }
    let all: Vec<_> = MISTAKES.iter().collect();
    let mut expected = alone.concat();
    expected.sort();
    let said = with_mistakes(&all);
    if said != expected {
        let unsaid: Vec<_> = expected.iter().filter(|expected| !said.contains(expected)).collect();
        let more: Vec<_> = said.iter().filter(|said| !expected.contains(said)).collect();
        wrong.push_str(&format!("all: unsaid {unsaid:#?}, said too much {more:#?}\n"));
    }
    assert!(wrong.is_empty(), "{wrong}");
}
