#include <foveal/foveal.h>
#include <stdio.h>

int main(void) {
    float q[] = {1, 0, 0, 1}, k[] = {1, 0, 0, 1}, v[] = {1, 2, 3, 4}, out[4];
    foveal_tensor view = {q, FOVEAL_F32, 4, {1, 2, 1, 2}, {4, 2, 2, 1}}; /* [b, s, h, d] */
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.q = args.k = args.v = args.out = view;
    args.k.data = k, args.v.data = v, args.out.data = out;
    args.window_right = 0; /* causal */
    if (foveal_forward(&args, NULL) != FOVEAL_OK) return fprintf(stderr, "%s\n", foveal_last_error()), 1;
    printf("%g %g  %g %g\n", out[0], out[1], out[2], out[3]);
    return 0;
}
