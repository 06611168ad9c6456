//! Devices, memory and copies.

mod support;

use cudarc::driver::CudaContext;
use support::on_virtual_gpu;

#[test]
fn a_device_names_itself_and_keeps_what_is_copied_to_it() {
    on_virtual_gpu("a_device_names_itself_and_keeps_what_is_copied_to_it", &[], || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(context.name().unwrap(), "Virtual GPU (no hardware)");
        assert_eq!(context.compute_capability().unwrap(), (8, 0));
        let stream = context.default_stream();
        let device = stream.clone_htod(&[1.5f32, -2.0, 3.25]).unwrap();
        assert_eq!(stream.clone_dtoh(&device).unwrap(), [1.5, -2.0, 3.25]);
    });
}
