def test_every_stage_equals_the_reference(case):
    case.check("siglip/", 1e-5)
