//! What a client's report of a task means.

use crate::boinc::{
    reply::unit_of_result,
    request::Report,
    store::{Outcome, UnitState},
};

/// Exit statuses by which a client says who ended a task.
const ABORTED_BY_PROJECT: i64 = 202;
const ABORTED_BY_USER: i64 = 203;
/// The states of a result in a report.
const STATE_ABORTED: i64 = 6;
const STATE_UPLOADED: i64 = 5;

/// What a report means; `None` for names that are no results of ours.
pub(super) fn outcome(report: &Report, host: u64) -> Option<Outcome> {
    let name = unit_of_result(&report.name)?.to_owned();
    let is_done = report.state == STATE_UPLOADED && report.exit_status == 0;
    let (otherwise, refusal) = match report.exit_status {
        _ if is_done => (
            UnitState::Failed,
            "the client says that it is done, and its result never came".to_owned(),
        ),
        ABORTED_BY_PROJECT => (UnitState::Aborted, "called back".to_owned()),
        ABORTED_BY_USER => (UnitState::Aborted, "given up by the user".to_owned()),
        _ if report.state == STATE_ABORTED => (UnitState::Aborted, "given up".to_owned()),
        status => (
            UnitState::Failed,
            format!("it failed on the machine with exit status {status}"),
        ),
    };
    Some(Outcome {
        name,
        host,
        otherwise,
        lessens_quota: report.exit_status != ABORTED_BY_PROJECT,
        refusal: Some(refusal),
        exit_status: report.exit_status,
        stderr: report.stderr.clone(),
        cpu_ms: report.cpu_ms,
        elapsed_ms: report.elapsed_ms,
    })
}
