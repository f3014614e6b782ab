"""The vendor's kernels as operations of torch. Imported on the device only; untested on hardware.

Layouts are those of `kernels.py`, whose references say what is computed. `attention_tkg` is made to
be a part of larger kernels, which have its queries on the chip; the kernel around it brings them.
"""

import nki  # type: ignore[import-not-found]
import nki.isa as nisa  # type: ignore[import-not-found]
import nki.language as nl  # type: ignore[import-not-found]
import torch
from nkilib.core.attention.attention_cte import attention_cte  # type: ignore[import-not-found]
from nkilib.core.attention.attention_tkg import (  # type: ignore[import-not-found]
    AttnTKGConfig,
    attention_tkg,
)
from nkilib.core.utils.allocator import SbufManager  # type: ignore[import-not-found]
from nkilib.core.utils.logging import Logger  # type: ignore[import-not-found]
from torch import Tensor
from torch_neuronx import nki_op, wrap_nki  # type: ignore[import-not-found]

#: The most requests, heads of keys apart, that one call of the kernel takes.
MOST = 128


@nki.jit
def _token_kernel(  # type: ignore[no-untyped-def]
    q, k_active, v_active, k_blocks, v_blocks, mask, positions, table, config
):
    memory = SbufManager(0, nl.tile_size.total_available_sbuf_size, Logger("engine"))
    memory.open_scope()
    out_shape = (config.bs, config.q_head, config.d_head, 1)
    out = nl.ndarray(out_shape, dtype=q.dtype, buffer=nl.shared_hbm)
    q_on_chip = memory.alloc_stack(q.shape, dtype=q.dtype, buffer=nl.sbuf)
    k_on_chip = memory.alloc_stack(k_active.shape, dtype=k_active.dtype, buffer=nl.sbuf)
    nisa.dma_copy(q_on_chip, q)
    nisa.dma_copy(k_on_chip, k_active)
    attention_tkg(
        q=q_on_chip,
        k_active=k_on_chip,
        v_active=v_active,
        k_prior=k_blocks,
        v_prior=v_blocks,
        mask=mask,
        out=out,
        cfg=config,
        sbm=memory,
        rope_pos_ids=positions,
        active_blocks_table=table,
    )
    memory.close_scope()
    return out


@nki_op("engine_neuron_nki::attention_tkg", mutates_args={})  # type: ignore[untyped-decorator]
def _token(
    q_BGD: Tensor,
    k_active_BD: Tensor,
    v_active_BD: Tensor,
    k_blocks_PSD: Tensor,
    v_blocks_PSD: Tensor,
    table_BN: Tensor,
    position_B: Tensor,
) -> Tensor:
    batch, group, dim = q_BGD.shape
    size = k_blocks_PSD.shape[1]
    places = table_BN.shape[1] * size
    config = AttnTKGConfig(
        bs=batch,
        q_head=group,
        s_active=1,
        curr_sprior=places,
        full_sprior=places,
        d_head=dim,
        block_len=size,
        tp_k_prior=True,
        use_pos_id=True,
        qk_in_sb=True,
    )
    out_BGD1: Tensor = wrap_nki(_token_kernel)(
        q_BGD.flatten(0, 1).t().contiguous(),  # [D, B * G]
        k_active_BD.t().contiguous(),
        v_active_BD[:, None, None],
        k_blocks_PSD,
        v_blocks_PSD,
        torch.ones(1, batch, group, 1, dtype=torch.uint8, device=q_BGD.device),
        position_B[:, None].float(),
        table_BN.to(torch.int32),
        config,
    )
    return out_BGD1.squeeze(-1)


def token(
    q_BGD: Tensor,
    k_active_BD: Tensor,
    v_active_BD: Tensor,
    k_blocks_PSD: Tensor,
    v_blocks_PSD: Tensor,
    table_BN: Tensor,
    position_B: Tensor,
) -> Tensor:
    """As `kernels.token_reference`, in as many calls as the kernel's limit asks for."""
    parts = zip(
        *(torch.split(x, MOST) for x in (q_BGD, k_active_BD, v_active_BD, table_BN, position_B)),
        strict=True,
    )
    outs = [_token(q, k, v, k_blocks_PSD, v_blocks_PSD, table, at) for q, k, v, table, at in parts]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


@nki_op("engine_neuron_nki::attention_cte", mutates_args={})  # type: ignore[untyped-decorator]
def context(
    q_HQD: Tensor,
    k_KQD: Tensor,
    v_KQD: Tensor,
    k_prior_KLD: Tensor,
    v_prior_KLD: Tensor,
    prior_used_len_1: Tensor,
) -> Tensor:
    """As `kernels.context_reference`."""
    result: Tensor = wrap_nki(attention_cte)(
        q_HQD,
        k_KQD,
        v_KQD,
        scale=1.0,
        causal_mask=True,
        k_prior=k_prior_KLD,
        v_prior=v_prior_KLD,
        prior_used_len=prior_used_len_1.to(torch.int32),
        tp_q=True,
        tp_k=True,
    )
    return result
