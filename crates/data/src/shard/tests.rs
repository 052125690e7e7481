use super::*;

/// Two documents with the tokens 5 6 0 and 0, end of text being 0.
fn shard(vocabulary_size: u32) -> Shard {
    let bounds = |first_token, tokens, text: &str, title: &str| DocumentBounds {
        first_token,
        tokens,
        text_bytes: text.len() as u64,
        text_hash: Hash::of_blob(text.as_bytes()),
        title: title.to_owned(),
        metadata: BTreeMap::from([("year".to_owned(), "1862".to_owned())]),
    };
    Shard {
        header: Header {
            tokenizer_hash: Hash([7; 32]),
            vocabulary_size,
            end_of_text: 0,
            split: Split::HeldOut,
            source: "letters".to_owned(),
            licence: "CC0-1.0".to_owned(),
            owner: "Ada".to_owned(),
            documents: vec![bounds(0, 3, "ab", "first"), bounds(3, 1, "", "second")],
        },
        tokens: vec![5, 6, 0, 0],
    }
}

/// xorshift64: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Whatever the bytes are: a refusal, or the one shard that has this spelling.
fn check_hostile(bytes: &[u8]) {
    if let Ok(shard) = decode(bytes) {
        assert_eq!(encode(&shard).as_deref(), Ok(bytes));
    }
}

#[test]
fn round_trip() {
    for (vocabulary_size, width) in [(7, 2), (65_536, 2), (65_537, 4), (VOCABULARY_SIZE_MAX, 4)] {
        let mut shard = shard(vocabulary_size);
        shard.tokens[1] = vocabulary_size - 1;
        let bytes = encode(&shard).unwrap();
        assert_eq!(decode(&bytes), Ok(shard));
        let header_bytes = u32::from_le_bytes(bytes[10..14].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), 14 + header_bytes + 4 * width);
    }
}

#[test]
fn golden_bytes() {
    let bytes = encode(&shard(7)).unwrap();
    let rows: Vec<String> = bytes
        .chunks(32)
        .map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    expect_test::expect![[r#"
        41485348415244000100a1000000070707070707070707070707070707070707
        0707070707070707070707070707070001076c657474657273074343302d312e
        3003416461020003022dc99999a6aaef3f20349d2ed4057a2b54419545dabb80
        9e6381de1bad8337e20566697273740104796561720431383632030100af1349
        b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262067365
        636f6e6401047965617204313836320500060000000000"#]]
    .assert_eq(&rows.join("\n"));
    expect_test::expect!["bbb963064381a05fed5a3cdb9296eacf0b9a6d8a7d6d87273f7a17d87a1e3712"]
        .assert_eq(&Hash::of_blob(&bytes).to_string());
}

#[test]
fn every_flipped_bit_and_every_cut_is_survived() {
    let bytes = encode(&shard(7)).unwrap();
    for position in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1 << bit;
            check_hostile(&flipped);
            assert_ne!(decode(&flipped), Ok(shard(7)));
        }
        assert!(decode(&bytes[..position]).is_err());
    }
    let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
    assert!(decode(&longer).is_err());
}

#[test]
fn random_bytes_are_survived() {
    let bytes = encode(&shard(7)).unwrap();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let mut hostile = bytes.clone();
        for _ in 0..=numbers.below(8) {
            let position = numbers.below(hostile.len());
            match numbers.below(3) {
                0 => hostile[position] = numbers.below(256) as u8,
                1 => {
                    let end = (position + 4).min(hostile.len());
                    hostile.drain(position..end);
                }
                _ => hostile.insert(position, numbers.below(256) as u8),
            }
            if hostile.is_empty() {
                break;
            }
        }
        check_hostile(&hostile);
        let noise: Vec<u8> = (0..numbers.below(64))
            .map(|_| numbers.below(256) as u8)
            .collect();
        check_hostile(&noise);
        check_hostile(&[&bytes[..14], &noise].concat());
    }
}

#[test]
fn malformed_shards_are_neither_written_nor_read() {
    let check = |change: fn(&mut Shard), expected: ShardError| {
        let mut shard = shard(7);
        change(&mut shard);
        assert_eq!(encode(&shard), Err(expected));
        // The same shard in bytes that only a hostile writer makes.
        let header = canonical::encode(&shard.header);
        let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
        bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&header);
        for token in &shard.tokens {
            bytes.extend_from_slice(&token.to_le_bytes()[..2]);
        }
        assert!(decode(&bytes).is_err());
    };
    check(
        |s| s.header.vocabulary_size = 0,
        ShardError::VocabularySize(0),
    );
    check(
        |s| s.header.vocabulary_size = VOCABULARY_SIZE_MAX + 1,
        ShardError::VocabularySize(VOCABULARY_SIZE_MAX + 1),
    );
    check(
        |s| s.tokens[1] = 7,
        ShardError::Token {
            position: 1,
            token: 7,
        },
    );
    check(|s| s.tokens[1] = 0, ShardError::EndOfText { document: 0 });
    check(|s| s.tokens[3] = 1, ShardError::EndOfText { document: 1 });
    check(
        |s| s.header.documents[1].first_token = 2,
        ShardError::Bounds { document: 1 },
    );
    check(
        |s| s.header.documents[1].first_token = 4,
        ShardError::Bounds { document: 1 },
    );
    check(
        |s| s.header.documents[0].first_token = 1,
        ShardError::Bounds { document: 0 },
    );
    check(
        |s| s.header.documents[1].tokens = 0,
        ShardError::Bounds { document: 1 },
    );
    check(
        |s| s.header.documents[1].tokens = 2,
        ShardError::TokenBytes {
            found: 8,
            expected: 10,
        },
    );
    check(
        |s| s.header.documents[1].tokens = u32::MAX,
        ShardError::Size {
            documents: 2,
            tokens: 3 + u64::from(u32::MAX),
        },
    );
    check(
        |s| s.tokens.push(0),
        ShardError::TokenBytes {
            found: 10,
            expected: 8,
        },
    );
    check(
        |s| {
            s.header.documents.clear();
            s.tokens.clear();
        },
        ShardError::Size {
            documents: 0,
            tokens: 0,
        },
    );
    check(|s| s.header.licence.clear(), ShardError::Labels);
    check(
        |s| s.header.owner = "x".repeat(LABEL_BYTES_MAX + 1),
        ShardError::Labels,
    );
    check(|s| s.header.documents[0].title.clear(), ShardError::Labels);
    check(
        |s| {
            let value = "x".repeat(METADATA_VALUE_BYTES_MAX + 1);
            s.header.documents[0]
                .metadata
                .insert("long".to_owned(), value);
        },
        ShardError::Labels,
    );
}

#[test]
fn other_files_are_named() {
    let bytes = encode(&shard(7)).unwrap();
    let changed = |position: usize, byte| {
        let mut bytes = bytes.clone();
        bytes[position] = byte;
        decode(&bytes)
    };
    assert_eq!(decode(b""), Err(ShardError::CutShort));
    assert_eq!(changed(0, b'X'), Err(ShardError::OtherMagic));
    assert_eq!(changed(8, 2), Err(ShardError::OtherVersion(2)));
    assert_eq!(changed(13, 0xff), Err(ShardError::CutShort));
    assert!(matches!(changed(10, 0), Err(ShardError::Header(_))));
}
