"""Key maps of the published checkpoints whose architectures are in dinit, by backbone name."""

from __future__ import annotations

from dinit.checkpoints.keymap import KeyMap, Rule

# facebookresearch/DiT
DIT: KeyMap = (
    Rule(r"pos_embed", None),
    Rule(r"x_embedder\.proj\.(.+)", r"stem.proj.\1"),
    Rule(r"t_embedder\.mlp\.(.+)", r"time_embedding.mlp.\1"),
    Rule(r"y_embedder\.embedding_table\.weight", r"label_embedding.table.weight"),
    Rule(r"blocks\.(\d+)\.adaLN_modulation\.1\.(.+)", r"blocks.\1.modulation.linear.\2"),
    Rule(r"blocks\.(\d+)\.attn\.(qkv|proj)\.(.+)", r"blocks.\1.attention.\2.\3"),
    Rule(r"blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"blocks.\1.mlp.\2.\3"),
    Rule(r"final_layer\.adaLN_modulation\.1\.(.+)", r"head.modulation.linear.\1"),
    Rule(r"final_layer\.linear\.(.+)", r"head.linear.\1"),
)

# hustvl/LightningDiT
LIGHTNINGDIT: KeyMap = (
    Rule(r"feat_rope\.freqs_(cos|sin)", None),
    Rule(r"blocks\.(\d+)\.norm([12])\.weight", r"blocks.\1.norm_\2.weight"),
    Rule(r"blocks\.(\d+)\.attn\.([qk])_norm\.(.+)", r"blocks.\1.attention.norm_\2.\3"),
    Rule(r"blocks\.(\d+)\.mlp\.w12\.(.+)", r"blocks.\1.mlp.gate_value.\2"),
    Rule(r"blocks\.(\d+)\.mlp\.w3\.(.+)", r"blocks.\1.mlp.out.\2"),
    Rule(r"final_layer\.norm_final\.weight", r"head.norm.weight"),
    *DIT,
)

# shallowdream204/DiCo
_DICO_STAGES = {
    "encoder_level_1": "encoder_1",
    "encoder_level_2": "encoder_2",
    "latent": "bottom",
    "decoder_level_2": "decoder_2",
    "decoder_level_1": "decoder_1",
}
_DICO_BLOCK = {
    r"adaLN_modulation\.1": "modulation.linear",
    r"conv1": "conv_in",
    r"conv2": "conv_depthwise",
    r"ca\.1": "channel_attention.conv",
    r"conv3": "conv_out",
    r"conv4": "mlp_in",
    r"conv5": "mlp_out",
}
DICO: KeyMap = (
    Rule(r"x_embedder\.proj\.(.+)", r"stem.\1"),
    *(Rule(rf"t_embedder_{i + 1}\.mlp\.(.+)", rf"time_embeddings.{i}.mlp.\1") for i in range(3)),
    Rule(r"y_embedder\.embedding_table_(\d)\.weight", r"label_embeddings.\1.table.weight"),
    *(
        Rule(rf"{stage}\.(\d+)\.{part}\.(weight|bias)", rf"{our_stage}.\1.{our_part}.\2")
        for stage, our_stage in _DICO_STAGES.items()
        for part, our_part in _DICO_BLOCK.items()
    ),
    Rule(r"down1_2\.body\.0\.weight", "down_1.conv.weight"),
    Rule(r"down2_3\.body\.0\.weight", "down_2.conv.weight"),
    Rule(r"up3_2\.body\.0\.weight", "up_2.conv.weight"),
    Rule(r"up2_1\.body\.0\.weight", "up_1.conv.weight"),
    Rule(r"reduce_chan_level([12])\.(.+)", r"merge_\1.\2"),
    Rule(r"final_layer\.adaLN_modulation\.1\.(.+)", r"head.modulation.linear.\1"),
    Rule(r"final_layer\.out_proj\.(.+)", r"head.conv.\1"),
)

# YuchuanTian/DiC
_DIC_BLOCK = {
    r"affine\.1": "modulation.linear",
    r"norm0": "norm_1",
    r"conv0": "conv_1",
    r"norm1": "norm_2",
    r"conv1": "conv_2",
    r"skip": "shortcut",
}
_DIC_STAGES = {
    r"enc_blocks\.(\d+)\.(\d+)": r"encoder.\1.\2",
    r"lat_blocks\.(0)\.(\d+)": r"bottom.\2",
    r"dec_blocks\.(\d+)\.(\d+)": r"decoder.\1.\2",
}
DIC: KeyMap = (
    Rule(r"x_embedder\.proj\.(.+)", r"stem.\1"),
    Rule(r"t_embedder_ls\.(\d+)\.mlp\.(.+)", r"time_embeddings.\1.mlp.\2"),
    Rule(r"y_embedder_ls\.(\d+)\.embedding_table\.weight", r"label_embeddings.\1.table.weight"),
    *(
        Rule(rf"{stage}\.conv\.{part}\.(weight|bias)", rf"{our_stage}.{our_part}.\3")
        for stage, our_stage in _DIC_STAGES.items()
        for part, our_part in _DIC_BLOCK.items()
    ),
    Rule(r"downs\.(\d+)\.body\.0\.weight", r"downs.\1.conv.weight"),
    Rule(r"ups\.(\d+)\.body\.0\.weight", r"ups.\1.conv.weight"),
    Rule(r"output\.(.+)", r"head.conv_in.\1"),
    Rule(r"final_layer\.adaLN_modulation\.1\.(.+)", r"head.modulation.linear.\1"),
    Rule(r"final_layer\.out_proj\.(.+)", r"head.conv_out.\1"),
)

KEY_MAPS: dict[str, KeyMap] = {"dit": DIT, "dico": DICO, "dic": DIC, "lightningdit": LIGHTNINGDIT}
