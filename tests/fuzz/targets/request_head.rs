#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| groupcache_proxy_fuzz::check("request_head", data));
