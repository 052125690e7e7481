//! Every fuzz target: the decoder that has the binary's name. `cargo xtask fuzz NAME` builds and runs one.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match env!("CARGO_BIN_NAME") {
        "openai_request" => {
            let _ = gateway::check_request(bytes);
        }
        "boinc_scheduler" => hub::boinc::decoders::scheduler(bytes),
        "boinc_upload" => hub::boinc::decoders::upload(bytes),
        name => tests::decoders::read(name, bytes),
    }
});
