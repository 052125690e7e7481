use super::*;

#[test]
fn heads_are_read() {
    let head = b"<data_server_request>\n<file_upload>\n<file_info>\n<name>t_0_r0</name>\n<xml_signature>\nv1.5.ab</xml_signature>\n\
                 <max_nbytes>500</max_nbytes>\n</file_info>\n<nbytes>68.000000</nbytes>\n<md5_cksum>AB</md5_cksum>\n<offset>7</offset>\n<data>\nxyz";
    let end = UploadHead::end(head).unwrap();
    assert_eq!(&head[end..], b"xyz");
    let read = UploadHead::read(&head[..end]).unwrap();
    let expected = UploadHead::Data {
        file: "t_0_r0".into(),
        token: "v1.5.ab".into(),
        bytes_max: 500,
        bytes: 68,
        md5: "ab".into(),
        offset: 7,
    };
    assert_eq!(read, expected);
    let size =
        b"<data_server_request>\n<get_file_size>t_0_r0</get_file_size>\n</data_server_request>";
    let expected = UploadHead::Size {
        file: "t_0_r0".into(),
    };
    assert_eq!(UploadHead::read(size), Some(expected));
    for at in 0..end {
        let _ = UploadHead::read(&head[..at]);
        let mut changed = head[..end].to_vec();
        changed[at] ^= 0x11;
        let _ = UploadHead::read(&changed);
    }
    assert_eq!(UploadHead::read(&[0xff; 9_000]), None);
    assert_eq!(UploadHead::end(b"<data>"), None);
}

#[test]
fn answers_have_boincs_shape() {
    let size = UploadReply {
        file_size: Some(5),
        ..DONE
    };
    assert_eq!(
        size.render(),
        "<data_server_reply>\n    <status>0</status>\n    <file_size>5</file_size>\n</data_server_reply>\n"
    );
    assert!(
        never("a < b")
            .render()
            .contains("<status>-1</status>\n    <message>a &lt; b</message>")
    );
}
