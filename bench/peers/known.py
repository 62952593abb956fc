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

_UNSET = "its backward names the number of processors for CUDA, XPU and NPU only (ops/dyt.py:131)"

# "op: text of the reason" -> proof
KNOWN: dict[str, str] = {
    "gla.fused_chunk_gla: is deprecated": "withdrawn: the function does nothing but raise",
    "delta_rule.fused_chunk_delta_rule: is deprecated": "withdrawn: it does nothing but raise",
    "LigerDyTFunction: NUM_SMS": _UNSET,
    "liger_dyt: NUM_SMS": _UNSET,
}

# What the references showed of the packages; the recipes step around it, and say so.
SEEN = [
    "`fla.ops.comba.naive_recurrent_comba` reads the state after its decay. `chunk_comba`,"
    " `fused_recurrent_comba` and `naive_chunk_comba` read it before, agree to 1e-6 and differ from"
    " it by 4 %.",
    "`fused_recurrent_rwkv6` takes no notice of the gradient of the final state that it returns:"
    " `dht` is an argument of its backward (`fla/ops/rwkv6/fused_recurrent.py:556`) and not used.",
    "`causal_conv1d` drops the gradient of the oldest of the W inputs that it returns as final"
    " state (`fla/modules/causal_conv1d/ops.py:331`: `start_tok` is T - (W - 1), the state's first"
    " token is T - W).",
    "`parallel_wall_attn_decode` computes addresses as if `p_curr` were contiguous and checks only"
    " its last dimension (`fla/ops/wall_attn/decode.py:204`): of a slice of a prefix it reads"
    " the wrong elements from the second batch element on.",
    "`chunk_simple_gla` with a fixed decay (`chunk_lightning_attn`) scales rows past the end of the"
    " sequence by exp2(b_g_last - b_g), which overflows for decays above 2 a step, times zero: the"
    " final state is NaN at T = 1 and 200 (`fla/ops/common/chunk_h.py:131`). Rows decay by 1.",
    "`LigerFusedGateUpSiLUMulFunction` takes inputs of three dimensions, its gradients have two.",
    "`chunk_precond_kda` normalises q and k always, `fused_recurrent_precond_kda` on request and"
    " `naive_recurrent_precond_kda` never.",
    "`LigerGroupNormFunction` takes the variance as E[x^2] - E[x]^2 of products in the dtype of x"
    " (`liger_kernel/ops/group_norm.py`): three nearly equal bf16 elements give NaN. Rows"
    " have 16 elements a group and more.",
    "`chunk_mesa_net` divides by |p A p| + 1e-5 in its conjugate gradients, which ends their"
    " convergence at about 3e-3: rows are held to 8e-3 of the scale.",
]
