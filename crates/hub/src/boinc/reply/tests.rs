use protocol::Hash;

use super::*;
use crate::boinc::{release::ReleaseFile, xml::Element};

fn release() -> Release {
    Release {
        app: "athome".into(),
        version_num: 101,
        code_sign_key: "1024\nab\n.\n".into(),
        code_sign_key_signature: Some("cd\n.\n".into()),
        platforms: vec![Platform {
            platform: "x86_64-pc-linux-gnu".into(),
            plan_class: String::new(),
            files: vec![ReleaseFile {
                name: "athome_101_x86_64-pc-linux-gnu".into(),
                bytes: 7,
                blake3: Hash([1; 32]),
                md5: "00".into(),
                file_signature: "ba\n.\n".into(),
                main_program: true,
            }],
        }],
    }
}

fn reply() -> SchedulerReply {
    let input = |name: &str, is_sticky| Input {
        name: name.into(),
        open_name: "unit".into(),
        bytes: 3,
        md5: "0123".into(),
        is_sticky,
    };
    SchedulerReply {
        request_delay_s: 6.0,
        next_request_s: Some(60.0),
        messages: vec![Message {
            is_notice: true,
            text: "refused: a < b &\n<hostid>9</hostid>".into(),
        }],
        body: Some(Body {
            master_url: "http://hub.example.org/".into(),
            project: "AI@home".into(),
            account: Account {
                name: "A & <b>".into(),
                team: Some((7, "T".into())),
                ..Account::default()
            },
            host: Some(1),
            host_created_s: 5,
            host_total: 1.5,
            host_recent: 0.5,
            acknowledged: vec!["r_0".into(), "<evil>".into()],
            has_trickles: true,
            aborted: vec!["s_0".into()],
            deleted: vec!["ab".into()],
            code_sign_key: Some(release().code_sign_key),
            task: Some(Task {
                name: "train_1_1_ab".into(),
                app: "athome".into(),
                version: 101,
                platform: release().platforms.remove(0),
                processors: 2,
                flops: 1e9,
                seconds: 20.0,
                memory_bytes: 10,
                disk_bytes: 11,
                inputs: vec![input("aa", false), input("bb", true)],
                upload_bytes_max: 12,
                upload_token: "v1.1.ab".into(),
                deadline_s: 13,
            }),
        }),
    }
}

#[test]
fn a_reply_has_the_shape_that_clients_read() {
    let text = reply().render(&release());
    expect_test::expect![[r#"
        <scheduler_reply>
        <scheduler_version>716</scheduler_version>
        <dont_use_dcf/>
        <master_url>http://hub.example.org/</master_url>
        <request_delay>6.000000</request_delay>
        <next_rpc_delay>60.000000</next_rpc_delay>
        <message priority="notice">refused: a &lt; b &amp; &lt;hostid&gt;9&lt;/hostid&gt;</message>
        <project_name>AI@home</project_name>
        <userid>0</userid>
        <user_name>A &amp; &lt;b&gt;</user_name>
        <user_total_credit>0.000000</user_total_credit>
        <user_expavg_credit>0.000000</user_expavg_credit>
        <user_create_time>0</user_create_time>
        <email_hash></email_hash>
        <cross_project_id></cross_project_id>
        <external_cpid></external_cpid>
        <project_preferences>
        <resource_share>100</resource_share>
        </project_preferences>
        <hostid>1</hostid>
        <host_total_credit>1.500000</host_total_credit>
        <host_expavg_credit>0.500000</host_expavg_credit>
        <host_venue></host_venue>
        <host_create_time>5</host_create_time>
        <teamid>7</teamid>
        <team_name>T</team_name>
        <result_ack>
            <name>r_0</name>
        </result_ack>
        <result_ack>
            <name>&lt;evil&gt;</name>
        </result_ack>
        <message_ack/>
        <result_abort>
            <name>s_0</name>
        </result_abort>
        <delete_file_info>ab</delete_file_info>
        <app>
            <name>athome</name>
            <user_friendly_name>AI@home training</user_friendly_name>
            <non_cpu_intensive>0</non_cpu_intensive>
            <fraction_done_exact>1</fraction_done_exact>
        </app>
        <file_info>
            <name>athome_101_x86_64-pc-linux-gnu</name>
            <url>http://hub.example.org/boinc/files/0101010101010101010101010101010101010101010101010101010101010101</url>
            <executable/>
            <file_signature>
        ba
        .
            </file_signature>
            <nbytes>7</nbytes>
        </file_info>
        <file_info>
            <name>aa</name>
            <url>http://hub.example.org/boinc/files/aa</url>
            <md5_cksum>0123</md5_cksum>
            <nbytes>3</nbytes>
        </file_info>
        <file_info>
            <name>bb</name>
            <url>http://hub.example.org/boinc/files/bb</url>
            <md5_cksum>0123</md5_cksum>
            <sticky/>
            <nbytes>3</nbytes>
        </file_info>
        <file_info>
            <name>train_1_1_ab_0_r0</name>
            <generated_locally/>
            <upload_when_present/>
            <max_nbytes>12</max_nbytes>
            <url>http://hub.example.org/boinc/file_upload_handler</url>
            <xml_signature>
        v1.1.ab
            </xml_signature>
        </file_info>
        <app_version>
            <app_name>athome</app_name>
            <version_num>101</version_num>
            <api_version>7.20.5</api_version>
            <file_ref>
                <file_name>athome_101_x86_64-pc-linux-gnu</file_name>
                <main_program/>
            </file_ref>
            <platform>x86_64-pc-linux-gnu</platform>
            <plan_class></plan_class>
            <avg_ncpus>2.000000</avg_ncpus>
            <flops>1000000000.000000</flops>
        </app_version>
        <workunit>
            <name>train_1_1_ab</name>
            <app_name>athome</app_name>
            <rsc_fpops_est>20000000000.000000</rsc_fpops_est>
            <rsc_fpops_bound>20000000000000.000000</rsc_fpops_bound>
            <rsc_memory_bound>10.000000</rsc_memory_bound>
            <rsc_disk_bound>11.000000</rsc_disk_bound>
            <file_ref>
                <file_name>aa</file_name>
                <open_name>unit</open_name>
            </file_ref>
            <file_ref>
                <file_name>bb</file_name>
                <open_name>unit</open_name>
            </file_ref>
        </workunit>
        <result>
            <name>train_1_1_ab_0</name>
            <wu_name>train_1_1_ab</wu_name>
            <report_deadline>13</report_deadline>
            <report_immediately/>
            <file_ref>
                <file_name>train_1_1_ab_0_r0</file_name>
                <open_name>output</open_name>
            </file_ref>
            <platform>x86_64-pc-linux-gnu</platform>
            <version_num>101</version_num>
            <plan_class></plan_class>
        </result>
        <code_sign_key>
        1024
        ab
        .
        </code_sign_key>
        <code_sign_key_signature>
        cd
        .
        </code_sign_key_signature>
        <gui_urls>
            <gui_url>
                <name>Your machines</name>
                <description>Tasks, credit and refusals with their reasons</description>
                <url>http://hub.example.org/#/machines</url>
            </gui_url>
        </gui_urls>
        </scheduler_reply>
    "#]].assert_eq(&text);
    // What refers to something comes after it.
    let at = |tag: &str| text.find(tag).unwrap_or_else(|| panic!("{tag} in {text}"));
    let order = [
        "<app>",
        "<file_info>",
        "<app_version>",
        "<workunit>",
        "<result>",
    ];
    assert!(order.map(at).is_sorted());
    let read = Element::read(&text).unwrap();
    assert_eq!(read.name(), "scheduler_reply");
    assert_eq!(read.count("hostid"), 1, "nobody's text becomes a tag");
    for line_start in [
        "<message ",
        "<code_sign_key>",
        "<result_ack>",
        "<delete_file_info>",
    ] {
        assert!(text.contains(&format!("\n{line_start}")), "{line_start}");
    }
}

#[test]
fn long_messages_are_cut() {
    let text = SchedulerReply::only("x & ".repeat(10_000), true, 1.0).render(&release());
    assert!(text.len() < 4_096);
    assert!(!text.contains("hostid") && !text.contains("userid"));
}
