"""What is known of the packages: names without a kernel, and defects proved to be theirs."""

from __future__ import annotations

_GROUP = "needs a torch process group of several ranks; no kernel of its own"
_TORCH = "torch code only"
_INDEX = "index arithmetic on sequence lengths, torch code only"

_NAMES = {
    _GROUP: """
        fla.ops.cp.all_gather_into_tensor fla.ops.cp.all_reduce_sum fla.ops.cp.build_cp_context
        fla.ops.cp.conv_cp_send_recv_bwd fla.ops.cp.conv_cp_send_recv_fwd
        fla.ops.cp.send_recv_bwd fla.ops.cp.send_recv_fwd
        fla.modules.fused_linear_cross_entropy.LinearLossParallel
        fla.modules.mlp.SwiGLULinearParallel fla.modules.norm.NormParallel
        fla.modules.parallel.PrepareModuleWeight fla.modules.token_shift_cp.token_shift_cp
        fla.modules.token_shift_cp.TokenShiftCPFunction
        liger_kernel.ops.LigerFusedLinearScaledCrossEntropyTPFunction
        liger_kernel.transformers.functional.liger_fused_linear_scaled_cross_entropy_tp""",
    _TORCH: """
        fla.ops.titans.chunk_titans_linear
        fla.modules.feature_map.flatten_diag_outer_product
        fla.modules.feature_map.flatten_diag_outer_product_off1
        fla.modules.feature_map.is_power_of_2 fla.modules.fused_bitlinear.activation_quant
        fla.modules.l2warp.L2Wrap fla.modules.long_conv.fft_conv
        fla.modules.long_conv.LongConvolution fla.modules.long_conv.PositionalEmbedding
        fla.modules.long_conv.ImplicitLongConvolution
        fla.modules.feature_map.HedgehogFeatureMap fla.modules.feature_map.T2RFeatureMap
        fla.modules.feature_map.DPFPFeatureMap fla.modules.feature_map.HadamardFeatureMap
        fla.modules.feature_map.LearnableOuterProductFeatureMap
        fla.modules.feature_map.TaylorFeatureMap fla.modules.feature_map.ReLUFeatureMap
        liger_kernel.ops.LigerTiledMLPFunction""",
    _INDEX: """
        fla.ops.utils.get_max_num_splits fla.ops.utils.prepare_chunk_indices
        fla.ops.utils.prepare_chunk_indices_static fla.ops.utils.prepare_chunk_offsets
        fla.ops.utils.prepare_cu_seqlens_from_lens fla.ops.utils.prepare_cu_seqlens_from_mask
        fla.ops.utils.prepare_lens fla.ops.utils.prepare_lens_from_mask
        fla.ops.utils.prepare_sequence_ids fla.ops.utils.prepare_token_indices
        fla.modules.token_shift.prepare_maxlens""",
}

NO_KERNEL: dict[str, str] = {n: why for why, names in _NAMES.items() for n in names.split()}

# "op: text of the reason" -> proof
KNOWN: dict[str, str] = {
    "gla.fused_chunk_gla: is deprecated": "withdrawn: the function does nothing but raise",
    "delta_rule.fused_chunk_delta_rule: is deprecated": "withdrawn: it does nothing but raise",
}
