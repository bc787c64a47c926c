"""Keys that change neither what a run learns nor what is measured, by trainer: names separated by spaces.

They say where a run writes and reports, how it is spread over devices, and which kernels it uses. A file with a key
that is neither here nor in its trainer's table is trained by that trainer itself.
"""

TRAINING_ARGUMENTS = """
    fp16 output_dir overwrite_output_dir do_train do_predict run_name project disable_tqdm log_level
    log_level_replica logging_dir logging_steps logging_strategy logging_first_step logging_nan_inf_filter
    log_on_each_node report_to trackio_space_id trackio_bucket_id trackio_static_space_id
    include_num_input_tokens_seen include_tokens_per_second include_for_metrics skip_memory_metrics save_steps
    save_strategy save_total_limit save_only_model save_on_each_node save_safetensors enable_jit_checkpoint
    load_best_model_at_end metric_for_best_model greater_is_better resume_from_checkpoint ignore_data_skip
    restore_callback_states_from_checkpoint push_to_hub hub_model_id hub_strategy hub_private_repo hub_revision
    hub_always_push hub_token eval_accumulation_steps eval_delay eval_on_start eval_use_gather_object
    batch_eval_metrics dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor remove_unused_columns data_seed full_determinism use_cpu no_cuda local_rank
    ddp_timeout ddp_backend ddp_bucket_cap_mb ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph
    deepspeed fsdp fsdp_config fsdp_transformer_layer_cls_to_wrap fsdp_min_num_params parallelism_config tf32
    torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps use_liger_kernel
    liger_kernel_config gradient_checkpointing_kwargs activation_checkpointing_kwargs
    average_tokens_across_devices
"""

LLAMAFACTORY = """
    trust_remote_code cache_dir low_cpu_mem_usage media_dir print_param_status
    overwrite_cache preprocessing_num_workers preprocessing_batch_size data_shared_file_system
    plot_loss compute_accuracy predict_with_generate
    include_effective_tokens_per_second early_stopping_steps use_unsloth use_unsloth_gc enable_liger_kernel
    use_reentrant_gc use_v1_kernels gradient_checkpointing infer_backend infer_dtype
    offload_folder use_kv_cache max_length max_new_tokens do_sample temperature top_p top_k num_beams
    repetition_penalty length_penalty ray_num_workers ray_init_kwargs ray_run_name ray_storage_path
    resources_per_worker placement_strategy master_addr master_port use_swanlab swanlab_project
    swanlab_workspace swanlab_run_name swanlab_mode swanlab_logdir pref_beta pref_ftx pref_loss
    dpo_label_smoothing kto_chosen_weight kto_rejected_weight simpo_gamma pissa_convert
    oft_rank oft_block_size oft_target galore_target galore_rank galore_update_interval galore_scale
    galore_proj_type galore_layerwise apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj
    apollo_proj_type apollo_scale_type apollo_layerwise badam_mode badam_start_block badam_switch_mode
    badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose fp8 fp8_backend
    fp8_enable_fsdp_float8_all_gather loraplus_lr_embedding enable_torch_profiler profiler_output_dir
    eval_num_beams buffer_size create_new_adapter
"""

# PEFT sets `lora_fan_in_fan_out` by the kind of each layer, whatever it is told. Axolotl has never read `eta_min`.
AXOLOTL = """
    experimental_skip_move_to_device use_wandb provider gpu gpu_count node_count volumes memory timeout
    memory_preprocess timeout_preprocess secrets use_scattermoe use_sonicmoe
    experts_implementation expert_parallel_size hub_model_id
    strict trust_remote_code hf_use_auth_token low_cpu_mem_usage
    dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory push_dataset_to_hub
    skip_prepare_dataset_cache num_dataset_shards_to_save saves_per_epoch save_first_step debug use_tensorboard
    wandb_project wandb_entity wandb_watch wandb_name wandb_run_id wandb_mode wandb_log_model use_wandb
    mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_mlflow use_comet
    comet_workspace comet_project_name comet_experiment_key comet_mode comet_online comet_experiment_config
    use_trackio trackio_project_name trackio_run_name use_otel_metrics otel_metrics_host otel_metrics_port
    use_swanlab swanlab_project swanlab_workspace swanlab_experiment_name swanlab_description swanlab_mode
    swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer swanlab_log_model
    gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature
    use_ray ray_run_name resources_per_worker ray_num_workers flash_attn_cross_entropy flash_attn_rms_norm
    flash_attn_fuse_mlp flash_optimum flex_attn_compile_kwargs fused_attn_kernel
    lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel use_kernels
    chunked_cross_entropy chunked_cross_entropy_num_chunks tiled_mlp tiled_mlp_num_shards liger_rope
    liger_rms_norm liger_glu_activation liger_layer_norm liger_fused_linear_cross_entropy liger_cross_entropy
    liger_rms_norm_gated activation_offloading layer_offloading selective_checkpointing
    torch_compile_options gc_steps gc_collect_steps lora_on_cpu qlora_sharded_model_loading
    max_memory gpu_memory_limit device_map device world_size ddp fsdp_version fsdp_final_state_dict_type
    dp_shard_size dp_replicate_size tensor_parallel_size context_parallel_size sequence_parallel_degree
    heads_k_stride ring_attn_func deepcompile pad_to_sequence_len pad_to_multiple_of eval_sample_packing
    sample_packing_group_size sample_packing_bin_size sample_packing_eff_est multipack_real_batches
    sample_packing_mp_start_method batch_flattening shuffle_merged_datasets evaluation_strategy
    loss_watchdog_threshold loss_watchdog_patience early_stopping_patience profiler_steps
    profiler_steps_start include_tkps auto_resume_from_checkpoints is_falcon_derived_model
    is_llama_derived_model is_mistral_derived_model is_qwen_derived_model eval_table_size eval_max_new_tokens
    do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split generate_samples
    num_generation_samples dynamic_checkpoint full_finetune merge_lora lora_fan_in_fan_out fp8
    fp8_enable_fsdp_float8_all_gather eta_min
"""

TRL = """
    trust_remote_code dataset_num_proc pad_to_multiple_of eval_packing activation_offloading pad_token env
    ignore_bias_buffers shuffle_dataset bnb_4bit_quant_storage num_processes num_machines machine_rank
    main_process_ip main_process_port mixed_precision accelerate_config
"""

MS_SWIFT = """
    trust_remote_code load_args load_data_args ignore_args_error dataset_num_proc load_from_cache_file
    val_dataset_shuffle download_mode add_version
    create_checkpoint_symlink padding_side padding_free packing_num_proc packing_strategy attn_impl experts_impl
    device_map max_memory local_repo_path
    bnb_4bit_quant_storage zero_hpz_partition_size deepspeed_autotp_size
    sequence_parallel_size vit_gradient_checkpointing safe_serialization max_shard_size predict_with_generate
    use_logits_to_keep resume_only_model early_stop_interval eval_limit eval_datasets eval_generation_config
    use_ray ray_exp_name device_groups max_new_tokens temperature top_k top_p repetition_penalty num_beams stream
    stop_words lazy_tokenize swanlab_project swanlab_mode swanlab_exp_name swanlab_workspace
"""
