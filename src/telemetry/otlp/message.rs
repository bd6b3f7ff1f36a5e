//! The OTLP messages' fields: number and wire type of each, as the readers match them.

use crate::wire::{BYTES, FIXED32, FIXED64, Known, VARINT, tag};

/// One module per message: a tag per field, and all of them as what is known. Repeated numbers may also come one by one;
/// those tags stand after the bar.
macro_rules! messages {
    ($($module:ident $name:literal {
        $($field:ident = $number:literal $wire_type:ident),* $(,)?
        $(| $($single:ident = $single_number:literal $single_type:ident),*)?
    })*) => {
        $(pub(super) mod $module {
            #![allow(dead_code)]
            use super::*;
            $(pub const $field: u32 = tag($number, $wire_type);)*
            $($(pub const $single: u32 = tag($single_number, $single_type);)*)?
            pub static KNOWN: Known = Known::new($name, &[$(($number, $wire_type)),*]);
        })*
    };
}

messages! {
    request "the export request" {
        RESOURCE_BLOCK = 1 BYTES,
    }
    resource_block "the resource block" {
        RESOURCE = 1 BYTES,
        SCOPE_BLOCK = 2 BYTES,
        SCHEMA_URL = 3 BYTES,
    }
    scope_block "the scope block" {
        SCOPE = 1 BYTES,
        ELEMENT = 2 BYTES,
        SCHEMA_URL = 3 BYTES,
    }
    resource "Resource" {
        ATTRIBUTE = 1 BYTES,
        DROPPED_ATTRIBUTES_COUNT = 2 VARINT,
        ENTITY_REF = 3 BYTES,
    }
    scope "InstrumentationScope" {
        NAME = 1 BYTES,
        VERSION = 2 BYTES,
        ATTRIBUTE = 3 BYTES,
        DROPPED_ATTRIBUTES_COUNT = 4 VARINT,
    }
    key_value "KeyValue" {
        KEY = 1 BYTES,
        VALUE = 2 BYTES,
        KEY_STRINDEX = 3 VARINT,
    }
    any_value "AnyValue" {
        STRING = 1 BYTES,
        BOOL = 2 VARINT,
        INT = 3 VARINT,
        DOUBLE = 4 FIXED64,
        ARRAY = 5 BYTES,
        MAP = 6 BYTES,
        RAW_BYTES = 7 BYTES,
        STRINDEX = 8 VARINT,
    }
    list "ArrayValue or KeyValueList" {
        VALUE = 1 BYTES,
    }
    metric "Metric" {
        NAME = 1 BYTES,
        DESCRIPTION = 2 BYTES,
        UNIT = 3 BYTES,
        GAUGE = 5 BYTES,
        SUM = 7 BYTES,
        HISTOGRAM = 9 BYTES,
        EXPONENTIAL_HISTOGRAM = 10 BYTES,
        SUMMARY = 11 BYTES,
        METADATA = 12 BYTES,
    }
    gauge_or_summary "Gauge or Summary" {
        POINT = 1 BYTES,
    }
    sum "Sum" {
        POINT = 1 BYTES,
        TEMPORALITY = 2 VARINT,
        IS_MONOTONIC = 3 VARINT,
    }
    histogram "Histogram or ExponentialHistogram" {
        POINT = 1 BYTES,
        TEMPORALITY = 2 VARINT,
    }
    number_point "NumberDataPoint" {
        START_TIME = 2 FIXED64,
        TIME = 3 FIXED64,
        AS_DOUBLE = 4 FIXED64,
        EXEMPLAR = 5 BYTES,
        AS_INT = 6 FIXED64,
        ATTRIBUTE = 7 BYTES,
        FLAGS = 8 VARINT,
    }
    histogram_point "HistogramDataPoint" {
        START_TIME = 2 FIXED64,
        TIME = 3 FIXED64,
        COUNT = 4 FIXED64,
        SUM = 5 FIXED64,
        BUCKET_COUNTS = 6 BYTES,
        EXPLICIT_BOUNDS = 7 BYTES,
        EXEMPLAR = 8 BYTES,
        ATTRIBUTE = 9 BYTES,
        FLAGS = 10 VARINT,
        MIN = 11 FIXED64,
        MAX = 12 FIXED64,
        | BUCKET_COUNT = 6 FIXED64, EXPLICIT_BOUND = 7 FIXED64
    }
    exponential_point "ExponentialHistogramDataPoint" {
        ATTRIBUTE = 1 BYTES,
        START_TIME = 2 FIXED64,
        TIME = 3 FIXED64,
        COUNT = 4 FIXED64,
        SUM = 5 FIXED64,
        SCALE = 6 VARINT,
        ZERO_COUNT = 7 FIXED64,
        POSITIVE = 8 BYTES,
        NEGATIVE = 9 BYTES,
        FLAGS = 10 VARINT,
        EXEMPLAR = 11 BYTES,
        MIN = 12 FIXED64,
        MAX = 13 FIXED64,
        ZERO_THRESHOLD = 14 FIXED64,
    }
    buckets "Buckets" {
        OFFSET = 1 VARINT,
        COUNTS = 2 BYTES,
        | COUNT = 2 VARINT
    }
    summary_point "SummaryDataPoint" {
        START_TIME = 2 FIXED64,
        TIME = 3 FIXED64,
        COUNT = 4 FIXED64,
        SUM = 5 FIXED64,
        QUANTILE_VALUE = 6 BYTES,
        ATTRIBUTE = 7 BYTES,
        FLAGS = 8 VARINT,
    }
    value_at_quantile "ValueAtQuantile" {
        QUANTILE = 1 FIXED64,
        VALUE = 2 FIXED64,
    }
    log_record "LogRecord" {
        TIME = 1 FIXED64,
        SEVERITY_NUMBER = 2 VARINT,
        SEVERITY_TEXT = 3 BYTES,
        BODY = 5 BYTES,
        ATTRIBUTE = 6 BYTES,
        DROPPED_ATTRIBUTES_COUNT = 7 VARINT,
        FLAGS = 8 FIXED32,
        TRACE_ID = 9 BYTES,
        SPAN_ID = 10 BYTES,
        OBSERVED_TIME = 11 FIXED64,
        EVENT_NAME = 12 BYTES,
    }
    span "Span" {
        TRACE_ID = 1 BYTES,
        SPAN_ID = 2 BYTES,
        TRACE_STATE = 3 BYTES,
        PARENT_SPAN_ID = 4 BYTES,
        NAME = 5 BYTES,
        KIND = 6 VARINT,
        START_TIME = 7 FIXED64,
        END_TIME = 8 FIXED64,
        ATTRIBUTE = 9 BYTES,
        DROPPED_ATTRIBUTES_COUNT = 10 VARINT,
        EVENT = 11 BYTES,
        DROPPED_EVENTS_COUNT = 12 VARINT,
        LINK = 13 BYTES,
        DROPPED_LINKS_COUNT = 14 VARINT,
        STATUS = 15 BYTES,
        FLAGS = 16 FIXED32,
    }
    status "Status" {
        MESSAGE = 2 BYTES,
        CODE = 3 VARINT,
    }
}
