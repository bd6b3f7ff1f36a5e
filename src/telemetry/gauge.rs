//! Gauges as OTLP writes them: one `ExportMetricsServiceRequest` in protobuf.

use crate::wire::{BYTES, FIXED64, tag};

/// The value of a data point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GaugeValue {
    Double(f64),
    Int(i64),
}

/// A gauge with one data point.
#[derive(Clone, Debug, PartialEq)]
pub struct Gauge<'a> {
    pub name: &'a str,
    pub start_ms: i64,
    pub time_ms: i64,
    pub value: GaugeValue,
    pub attributes: &'a [(String, String)],
}

/// Appends the request with these gauges, all of one resource. Times before 1970 and after 2554 are not known.
pub fn write_gauges(resource: &[(String, String)], gauges: &[Gauge<'_>], out: &mut Vec<u8>) {
    message(out, 1, |resource_metrics| {
        message(resource_metrics, 1, |of| attributes(of, 1, resource));
        message(resource_metrics, 2, |scope_metrics| {
            message(scope_metrics, 1, |scope| text(scope, 1, "homeostat"));
            for gauge in gauges {
                message(scope_metrics, 2, |metric| {
                    text(metric, 1, gauge.name);
                    message(metric, 5, |of| message(of, 1, |point| data_point(point, gauge)));
                });
            }
        });
    });
}

fn data_point(out: &mut Vec<u8>, gauge: &Gauge<'_>) {
    let nanoseconds = |ms: i64| {
        u64::try_from(ms)
            .ok()
            .and_then(|ms| ms.checked_mul(1_000_000))
            .unwrap_or(0)
    };
    fixed(out, 2, nanoseconds(gauge.start_ms));
    fixed(out, 3, nanoseconds(gauge.time_ms));
    match gauge.value {
        GaugeValue::Double(value) => fixed(out, 4, value.to_bits()),
        GaugeValue::Int(value) => fixed(out, 6, value as u64),
    }
    attributes(out, 7, gauge.attributes);
}

fn attributes(out: &mut Vec<u8>, number: u32, attributes: &[(String, String)]) {
    for (key, value) in attributes {
        message(out, number, |attribute| {
            text(attribute, 1, key);
            message(attribute, 2, |any| text(any, 1, value));
        });
    }
}

/// A field that is a message: its length comes before it, so it is written aside first.
fn message(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    bytes(out, number, &inner);
}

fn text(out: &mut Vec<u8>, number: u32, text: &str) {
    bytes(out, number, text.as_bytes());
}

fn bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    varint(out, u64::from(tag(number, BYTES)));
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn fixed(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(tag(number, FIXED64)));
    out.extend_from_slice(&value.to_le_bytes());
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        common::v1::any_value,
        metrics::v1::{MetricsData, metric::Data, number_data_point},
    };
    use proptest::prelude::*;
    use prost::Message;

    use std::sync::Arc;

    use arrow::{
        array::AsArray,
        datatypes::{Schema, TimestampMillisecondType},
        util::pretty::pretty_format_batches,
    };

    use super::*;
    use crate::{Decoder, Format, RecordMeta, map_entry, schema};

    #[test]
    fn our_decoder_reads_what_is_written() {
        let attributes = [("service".to_owned(), "a".to_owned())];
        let gauge = |name, value| Gauge {
            name,
            start_ms: 1_000,
            time_ms: 11_000,
            value,
            attributes: &attributes,
        };
        let gauges = [
            gauge("load.n", GaugeValue::Int(-3)),
            gauge("load.mean", GaugeValue::Double(0.25)),
        ];
        let mut written = Vec::new();
        write_gauges(
            &[("service.name".to_owned(), "homeostat".to_owned())],
            &gauges,
            &mut written,
        );
        let known = schema(Format::OtlpMetrics { json: false });
        let column = |name: &str| known.field_with_name(name).unwrap().clone();
        let columns = [
            column("event_time"),
            column("metric_name"),
            column("value"),
            map_entry("s", "attributes", "service"),
        ];
        let columns = Arc::new(Schema::new(columns.to_vec()));
        let mut decoder =
            Decoder::new(Format::OtlpMetrics { json: false }, columns, &[None, None, None, None]).unwrap();
        decoder.push(&written, &RecordMeta::new(0, 0)).unwrap();
        let batch = decoder.finish().batch;
        let times = batch.column(0).as_primitive::<TimestampMillisecondType>();
        assert_eq!(times.values()[..], [11_000, 11_000]);
        let rows = pretty_format_batches(&[batch.project(&[1, 2, 3]).unwrap()])
            .unwrap()
            .to_string();
        let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let rows: Vec<Vec<String>> = rows.lines().map(cells).collect();
        assert_eq!(rows[3][1..4], ["load.n", "-3.0", "a"]);
        assert_eq!(rows[4][1..4], ["load.mean", "0.25", "a"]);
    }

    proptest! {
        #[test]
        fn the_reference_reads_what_is_written(
            points in prop::collection::vec(("[a-z.é]{1,300}", any::<u32>(), any::<f64>(), any::<i64>(), any::<bool>(), "\\PC{0,40}"), 0..20),
        ) {
            let attributes: Vec<Vec<(String, String)>> =
                points.iter().map(|point| vec![("k".to_owned(), point.5.clone()), ("".to_owned(), "v".to_owned())]).collect();
            let gauges: Vec<Gauge<'_>> = points.iter().zip(&attributes).map(|((name, time, double, int, is_int, _), attributes)| Gauge {
                name,
                start_ms: i64::from(*time),
                time_ms: i64::from(*time) + 1,
                value: if *is_int { GaugeValue::Int(*int) } else { GaugeValue::Double(*double) },
                attributes,
            }).collect();
            let resource = [("service.name".to_owned(), "x".repeat(200))];
            let mut written = Vec::new();
            write_gauges(&resource, &gauges, &mut written);
            let read = MetricsData::decode(written.as_slice()).unwrap();
            let of = &read.resource_metrics[0];
            prop_assert_eq!(&of.resource.as_ref().unwrap().attributes[0].key, "service.name");
            let metrics = &of.scope_metrics[0].metrics;
            prop_assert_eq!(metrics.len(), gauges.len());
            for (metric, gauge) in metrics.iter().zip(&gauges) {
                prop_assert_eq!(&metric.name, gauge.name);
                let Some(Data::Gauge(data)) = &metric.data else { panic!("no gauge") };
                let point = &data.data_points[0];
                prop_assert_eq!(point.time_unix_nano, gauge.time_ms as u64 * 1_000_000);
                prop_assert_eq!(point.start_time_unix_nano, gauge.start_ms as u64 * 1_000_000);
                match (point.value.unwrap(), gauge.value) {
                    (number_data_point::Value::AsDouble(read), GaugeValue::Double(value)) => {
                        prop_assert_eq!(read.to_bits(), value.to_bits());
                    }
                    (number_data_point::Value::AsInt(read), GaugeValue::Int(value)) => prop_assert_eq!(read, value),
                    other => panic!("{other:?}"),
                }
                let value = point.attributes[0].value.clone().unwrap().value;
                prop_assert_eq!(value, Some(any_value::Value::StringValue(gauge.attributes[0].1.clone())));
            }
        }
    }
}
