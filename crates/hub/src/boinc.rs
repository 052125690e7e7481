//! BOINC: stock clients take part in runs.

pub mod release;
