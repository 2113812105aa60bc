"""All plots of the embedded corpus; `HELD_OUT_PLOTS` are told only in the validation split.

The parts that plots share, and the plots that stay near home (see `plots` for the others).

A stage is a tuple of templates of which one is drawn; an empty template makes the stage optional. A text that starts
with a dash becomes a paragraph of its own.
"""

from dataclasses import dataclass

Stage = tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """A story line: noun classes of its main object (`thing`), of who helps and of where it happens, and its stages.

    With `friend_known`, the first mention of the friend says who that is (`a amiga Rita`).
    """

    stages: tuple[Stage, ...]
    thing: str = "obj"
    helper: str = "job"
    where: str = "square"
    friend_known: bool = True


START: Stage = ("<opening>",)
SCENE: Stage = ("<scene>", "<scene>", "")
END: Stage = ("<end>",)
THING_END: Stage = ("<thingend>",)
CHEER: Stage = ("<hcheer>", "<fcheer>", "<echeer>", "{s} ficou {joy h} e [abraçou {o f}|agradeceu {ao f}].", "{s} ficou {joy h}.", "")
ADMIRE: Stage = (
    "— <admire> ~ <cried> {f}<fmanner>.", "— <admire> ~ <cried> {o e}<emanner>.", "— obrigad{f o/a}, {h}! <admire> ~ <said> {f}.",
    "<hcheer>", "<fcheer>", "<echeer>", "",
)
TALK: Stage = ("<talk>", "<talk>", "")
HINT: Stage = (
    "<hint>", "<hint>", "{f} [quis|tentou|resolveu] ajudar <how>.", "{s} pediu [ajuda|um conselho|uma ideia] {ao j}.", "",
)

HOME_PLOTS: dict[str, Plot] = {
    "lost": Plot((
        START,
        ("<then>, {s} [percebeu|notou|viu] que {o thing adj} [tinha sumido|não estava mais {no room}|havia desaparecido].",
         "{o thing adj} {do h} [sumiu|desapareceu] {no where}, [perto|atrás] {do yardspot}, e [ninguém|só {um animal}] viu.",
         "<then>, {s} [quis|foi] pegar {o thing adj} e só [achou|encontrou] {um obj adj} e {um obj}."),
        ("procurou <spotpos>, <spotpos> e até <spotpos>[, mas só achou {um obj adj}|, sem sorte].",
         "{s} [revirou|abriu|esvaziou] {o container adj} {do e} e [espiou|olhou|procurou] <spotpos>.",
         "{s} ficou {sad h} e [perguntou {ao j}|chamou {o f}|foi {ao where}|olhou <spotpos>]."),
        ("— [alguém|você|quem] [viu|pegou|achou] {o meu thing}? ~ <asked> {h}<gesture>.", "— [já olhou|olhe|procure] <spotpos>! ~ <said> {o e}<emanner>.",
         "<hint>", ""),
        ("{f} [ajudou|veio ajudar] <how>: olhou <spotpos> e [chamou|seguiu] {um animal adj}.", "<scene>", ""),
        ("<then>, {um pet adj} saiu de trás {do spot} [puxando|empurrando|com] {o thing}.",
         "<then>, {o thing} [apareceu|surgiu] <outpos>, {= coberto} de {* blow}.", "<then>, {o thing} [apareceu|surgiu] <inpos>.",
         "{o j} [encontrou|achou|viu] {o thing} <outpos> e [devolveu tudo|veio correndo|chamou {h}].",
         "foi {o e} quem [achou|viu|encontrou] {o thing}: estava <spotpos>."),
        ADMIRE, THING_END,
    )),
    "found": Plot((
        START,
        ("<then>, {s} [achou|encontrou|avistou|descobriu] {um thing adj} <outpos>.",
         "<outpos>, {h} [viu|notou|encontrou] {um thing adj} e {um obj}.",
         "{um creature adj} [parou|ficou] <outpos>, e ali {s} [viu|achou|notou] {um thing adj}."),
        ("— de quem [será|é] {este thing}? ~ <asked> {h}<hmanner>.",
         "{s} [pegou|segurou|limpou] {o thing} <how> e [pensou no dono|procurou um nome|não achou nome nenhum].",
         "{s} [queria|podia|quase quis] ficar com {o thing}, mas [pensou|confiou] {no e} e [procurou|quis achar] o dono."),
        SCENE,
        ("{s} [perguntou|mostrou {o thing}] {ao f}, {ao job} e {ao e}.", "[perguntou|foi perguntar] {no place}, {no place} e {no place adj?}.",
         "{f} [fez|pintou|desenhou] um cartaz [amarelo|azul|grande|bonito] e [colou|deixou] tudo {no place}, perto {do spot}."),
        ("<then>, {o j} [contou|disse|explicou] que tinha perdido {o thing} {no where}.",
         "{o j} [reconheceu|abraçou|beijou] {o thing} e [chorou|riu|sorriu], {joy j}.",
         "{o thing} era {do j}, que [procurava|buscava] [havia|fazia] [dois|três|cinco] dias."),
        ("— [que bom|ah, que alegria], {h}! [ganhei|comprei] {este thing} {do meu kin} ~ <said> {o j}.", *CHEER),
        ("como [prêmio|presente|agradecimento], {s} [ganhou|recebeu] {um bite adj} e {um keepsake adj}.", ""), END,
    )),
    "broken": Plot((
        START,
        ("<then>, {o thing adj} [caiu|escorregou|bateu] {no where} e [quebrou|rachou|parou de funcionar].",
         "{o pet adj} {do f} [pulou|correu|brincou] <spotpos> e [derrubou|quebrou] {o thing adj} {do e}.",
         "{s} [tropeçou|escorregou] {no obj} e [derrubou|quebrou|amassou] {o thing adj}, que era {do f}."),
        ("{s} ficou {sad h}[.|, mas respirou fundo.| e [quis|pensou em] [fugir|mentir|chorar|desistir].]",
         "{s} [juntou|recolheu|guardou] os [pedaços|cacos] <how> e [foi|correu] {ao room}.", "{s} [escondeu|guardou] {o thing} <inpos> e ficou {sad h}."),
        HINT,
        ("{s} levou {o thing} {ao j}, que tinha {um bigbox adj} {= cheio} de {* obj}.",
         "{o e} [pegou|buscou|trouxe] [cola|fita|ferramentas|linha] e {um obj adj?}, e {s} [segurou|lavou|mediu] as peças.",
         "{h} e {f} [usaram|juntaram] [cola|fita|tábuas|corda], {um obj adj} e [um pouco|uma pitada] de paciência.",
         "{o j} [abriu|desmontou|virou] {o thing} <how>, [trocou|limpou|colou] uma peça e [sorriu|assobiou]."),
        SCENE,
        ("<then>, {o thing} voltou a funcionar, {= enfeitado} com {um keepsake color}.", "{o thing} ficou [mais|ainda mais] {= bonito}, com {dois keepsake} [na ponta|do lado].",
         "{o thing} já não era como antes, mas [funcionava|servia] [bem|muito bem|sem problemas].",
         "{o thing} voltou a [funcionar|servir], mas agora [tinha|levava] {um keepsake color} [na ponta|do lado]."),
        ADMIRE, THING_END,
    ), thing="fixable", helper="fixer"),
    "gift": Plot((
        START,
        ("[era|chegou] o aniversário {do e}, e {s} queria [dar|fazer|comprar] {um thing nice}.",
         "{o e} fazia anos, mas {s} só tinha {um keepsake adj} e {dois bite}.", "<then>, {s} [decidiu|resolveu] fazer {um thing} para {o e}."),
        ("{s} [juntou|pegou|pediu] papel, [tinta|corda|tábuas], [cola|linha|fita] e {um keepsake adj} {do f}.", "{s} [procurou|escolheu] {* blow adj} {no where} e [levou|juntou] tudo {no container adj}.",
         "{f} [emprestou|ofereceu|deu] {um obj adj} e [ensinou|mostrou] [um jeito|um truque] {do j}."),
        ("{s} [passou|trabalhou] a [tarde|manhã] {no room}, perto {do inspot adj?}, <amb>.", *SCENE),
        ("{s} [errou|furou|rasgou] [duas|três|cinco] vezes, mas [tentou|continuou|recomeçou] <how>.", "{um pet adj} quase [estragou|levou|comeu] tudo <inpos>.", *HINT),
        ("<then>, {s} [entregou|deu|mostrou] {o thing} {ao e}, dentro de {um container adj?}.", "<then>, {o e} [abriu|desembrulhou] {o container} e [viu|achou] {o thing nice}.",
         "{s} [escondeu|deixou] {o thing} <inpos> e [esperou|chamou] {o e}."),
        ("— [que|mas que] {thing nice}! [adorei|parece {um obj}|vou usar {no place}]! ~ <cried> {o e}<emanner>.", *ADMIRE),
        ("{o e} [guardou|pendurou|colocou] {o thing} <inpos>.", "{o e} [levou|mostrou] {o thing} {no place adj?}, {joy e}.", ""), END,
    ), thing="gift", helper="artist"),
    "rescue": Plot((
        START,
        ("<then>, {s} [ouviu|escutou] um [barulho|gemido|som] e [viu|achou] {um pet adj} {= preso} <outpos>.",
         "<outpos>, {h} [viu|encontrou|avistou] {um pet adj} com [a pata|a orelha|uma perna] [machucada|ferida|presa].",
         "{um pet adj} tinha [caído|ficado] <outpos> e não [conseguia|sabia] [sair|voltar]."),
        ("{s} [chegou perto|se abaixou] <how> e [ofereceu|mostrou|deu] {um bite adj?}.", "{s} [teve|sentiu] medo, mas [respirou fundo|pensou {no e}|chamou {o f}].",
         "— [calma|não tenha medo|já vou ajudar], [bichinho|amigo]! ~ [disse|falou|sussurrou|murmurou] {h}<gesture>."),
        ("{f} [trouxe|buscou|pegou] {um garden adj} e {um container}, e {o j} [segurou|puxou|afastou] {o pet}.",
         "com {um garden adj} e {um container adj}, {s} fez uma [cama|escada|ponte|rampa|jangada] para {o pet}.", *HINT),
        ("{o e} [lavou|enrolou|aqueceu] {o pet} com {um blanket adj} e [serviu|deu|trouxe] [água|leite|comida].", *SCENE),
        ("[dois|três|cinco] dias depois, {o pet} já [corria|brincava|pulava] {no where} [com {um animal}|atrás {do animal}].",
         "<then>, {o pet} [ficou|voltou a ficar] {= forte} e [comeu|pediu|roubou] {dois bite}.",
         "{o j} [contou|disse] que {o pet} [morava|tinha família] {no place adj?}, e {s} [foi até lá|deu um abraço {no pet}]."),
        CHEER, ("{o pet} ganhou o nome de <petname>.", "", ""), END,
    ), helper="rescuer"),
    "cooking": Plot((
        START,
        ("{s} queria [fazer|preparar] {um treat adj} para {o e}, [seguindo|com] a receita {do j}.",
         "{o e} [pediu|sugeriu|quis] {um treat adj}, e {s} [vestiu|pegou] {um wear adj}.",
         "<then>, {s} [sentiu|teve] vontade de comer {treat}, mas não havia nada {no room}."),
        ("{s} [buscou|comprou|colheu|pediu] {dois fruit}, farinha e {um fruit adj} {no where}.",
         "{h} e {f} [buscaram|lavaram|cortaram] {dois fruit}, {três veg} e {um bite}.",
         "{f} [trouxe|emprestou] {um thing adj} e {um pan}, e {o e} [acendeu|vigiou] o fogo."),
        ("{s} [misturou|mexeu|bateu] tudo <how> {no thing adj}, <amb>.", "{s} [mexeu|provou|bateu] tudo <how>, mas derrubou [farinha|água] {no obj adj}."),
        ("<then>, {um pet adj} [entrou|pulou|apareceu] {no room} e [roubou|cheirou|comeu] {um fruit}.", *SCENE), HINT,
        ("{o treat} ficou {= pronto}, e {o j} [trouxe|buscou] {um dish adj} e {dois snack}.",
         "o cheiro [chegou|foi] até {o place adj?} e [trouxe|chamou|acordou] {o j} e {o job}.",
         "<then>, [todos|as crianças|os vizinhos] [comeram|provaram] {o treat} {no where} e pediram [mais|outro pedaço]."),
        ("— [quero|posso provar|me dá] mais! ~ <cried> {f}<fmanner>.", *CHEER), END,
    ), thing="pan", helper="seller", where="yard"),
    "noise": Plot((
        ("<opening>", "<described> numa noite [fria|escura|de chuva|de vento|sem lua], {s} [dormia|descansava|lia] {no room}."),
        ("<then>, {s} [ouviu|escutou] um [barulho|ruído|estalo|som] [estranho|fino|forte|esquisito], vindo {do place adj?}.",
         "<inpos>, [algo|alguma coisa] [fez|fazia] um barulho de {obj}.",
         "uma sombra [parecida com|do tamanho de] {um obj adj} [passou|surgiu] <inpos>."),
        ("{s} ficou {fear h} e [segurou|abraçou|apertou] {o thing adj}.",
         "{s} [quis|pensou em] [correr|gritar|chorar], mas [pegou|buscou|levou] {o thing adj}.", "— quem [está|anda] aí? ~ <asked> {h}, {fear h}."),
        ("{f} [pegou|levou|segurou] {um obj adj}, e {s} foi [atrás|na frente], <how>.", *HINT),
        SCENE,
        ("{s} [espiou|olhou|procurou] <inpos> e [viu|achou|encontrou] só {um pet adj}, [com medo|com frio|com fome].",
         "era {um pet adj} que [mexia|batia|brincava] {no obj adj?} [por diversão|sem querer|outra vez].",
         "o [barulho|ruído|som] vinha {do obj adj}, que {um pet adj} [empurrava|balançava|mordia] <inpos>."),
        ("{s} riu, {joy h}, e [deu|ofereceu] {um bite adj?} {ao pet}.", *CHEER),
        ("{o e} [explicou|contou|disse] que [todo mundo|até {o j}|até {um creature}] [tem|sente] medo [às vezes|do escuro].", ""),
        END,
    ), thing="device"),
    "garden": Plot((
        START,
        ("{o j} deu {ao h} um [pote|saco|punhado|vidro] de sementes de {crop}.",
         "{s} [achou|guardou] [uma semente|sementes] de {crop} {no container adj}.",
         "{s} [queria|resolveu|decidiu] plantar {crop} e {plant} {no where}, perto {do yardspot}."),
        ("{s} [cavou|abriu|fez] [um buraco|uma cova] com {o thing adj} e [regou|cobriu] tudo <how>.",
         "{f} [trouxe|carregou|buscou] {o thing adj}, e {o e} [veio com|carregou] {um container} de terra."),
        ("[toda manhã|todo dia|toda tarde], {s} [regava|olhava|visitava] a terra, <amb>.",
         "[passaram dois dias|passou uma semana|passou um mês], e só {um creature adj} aparecia {no where}."),
        HINT, SCENE,
        ("<then>, [nasceu|surgiu|brotou] {um crop adj}, do tamanho de {um container}.",
         "<then>, {dois crop adj} [brotaram|apareceram|cresceram] [perto|ao lado] {do yardspot}.",
         "{um crop adj} cresceu tanto que [cobriu|escondeu] {o yardspot} e [deu|fez] sombra {ao creature}."),
        ("{s} [fez|serviu] {um recipe adj?} para {o j} e {o e}.", *CHEER), END,
    ), thing="garden", helper="grower", where="yard"),
    "sharing": Plot((
        START,
        ("{h} tinha {um thing adj} e não [emprestava|dava|mostrava] {o thing} [a ninguém|nem {ao f}|nem {ao kin}].",
         "{o e} deu {um thing adj} {ao h}, [mas|só que] {f} também queria [brincar|um|ver].",
         "<then>, {h} e {f} [queriam|disputaram|puxaram] {o mesmo thing adj} {no where}."),
        ("— [não|espere|sai daí], {este thing} é só para mim! ~ [gritou|disse|respondeu|resmungou] {h}<gesture>.",
         "— posso [brincar também|usar {o seu thing}]? ~ <asked> {f}<gesture>.",
         "{f} [pediu|esperou] a vez <how>, mas {h} [fingiu não ver|virou o rosto|saiu correndo]."),
        ("{f} ficou {sad f} e foi [embora|brincar com {um creature}|para perto {do yardspot}].", "{f} [saiu|voltou] com {um pet adj} e [sentou|ficou] <outpos>."),
        ("{h} [brincou|ficou] sem companhia {no where}, <amb>, e não achou graça.", *SCENE),
        HINT,
        ("<then>, {h} [chamou|procurou|buscou] {o f} e [ofereceu|emprestou|levou] {o thing} e {um bite}.",
         "<then>, {h} [repartiu|dividiu] {um bite adj} e [emprestou|levou|ofereceu] {o thing} {ao f}."),
        ("as crianças [inventaram|criaram] um jogo com {o thing}, {dois toy} e {um pet adj}.",
         "{h} e {f} brincaram [muito|até tarde] {no where}, e {o j} [deu|trouxe] {dois bite adj}."),
        ADMIRE, END,
    ), thing="toy"),
}



TRAIN_PLOTS: dict[str, Plot] = HOME_PLOTS | {
    "trip": Plot((
        ("<when>, {h} [viajou|partiu|foi de trem|foi de ônibus|foi de barco] com {o e} até {o where adj}.",
         "{h} [queria|sonhava em] conhecer {o where adj}, e {o e} [comprou|conseguiu] as passagens.", "<described> <when>, {s} [foi|viajou] com {o e} até {o where adj}."),
        ("na mala, {s} levou {o thing adj}, {um obj adj} e {dois snack}.", "{f} [emprestou|deu] {o thing adj} {ao h} e [pediu|quis] [uma foto|notícias] {do wild}."),
        ("[da janela|do alto|de longe|do caminho], {s} [viu|contou|avistou] {dois wild adj}, {um outdoor adj} e {três creature}.",
         "<then>, {s} [viu|avistou|ouviu] {um wild adj} <outpos>.", "{um wild adj} [bebia água|descansava|passava] perto {do yardspot}, <amb>."),
        ("— [olhe|veja|espie], {um wild}! como é {= bonito}! ~ <cried> {h}<hmanner>.", *SCENE),
        ("o vento levou {o thing adj} até {o place adj?}, e {um wild adj} [cheirou|pisou|guardou] tudo.",
         "{s} [quase caiu|escorregou|parou] {no where}, mas {o e} [segurou|chamou|puxou] <how>.", *TALK),
        ("{o j} [contou|mostrou|explicou] que {o wild} [dorme pouco|acorda cedo|come de noite|mora nas pedras|vive perto da água] e [gosta de|procura] {fruit}.",
         "{s} [desenhou|fotografou] {um wild adj} e {dois creature adj}."),
        CHEER, END,
    ), thing="wear", helper="guide", where="far"),
    "rainy": Plot((
        ("<when>, [começou a chover|caiu um temporal|a chuva não parou] {no where}, e {h} ficou {no room adj?} com {o e}.",
         "chovia [muito|forte|sem parar] {no where}. {h} [olhava|contava] as gotas pela janela, {sad h}.", "<described> <then>, começou a chover {no where}."),
        ("{s} [abriu|achou|encontrou] {um thing adj} <inpos>, {= cheio} de {* toy}.", "{o e} [trouxe|abriu|mostrou] {um thing adj} com {dois toy} e {um obj adj}."),
        ("— vamos [fingir|imaginar] que {o thing} é {um outdoor adj}! ~ <cried> {h}<hmanner>.", "— [isto|tudo|aquilo] era {do meu kin} ~ <said> {o e}<emanner>."),
        ("com {o obj} e {um wear adj}, {s} virou {job} {do outdoor adj?}, e {f} fez de conta que era {creature}.",
         "{h} e {f} [montaram|fizeram|resolveram construir] [uma cabana|uma jangada|um barco|um castelo|um trem] com {dois obj adj} e {o thing}.",
         "{o inspot adj} virou {outdoor}, e {o inspot adj} virou {place}.",
         "{h} foi o capitão, {f} [jogou|lançou|puxou] a corda, e {um pet adj} remou <how>."),
        SCENE, ("{um pet adj} também quis brincar e [virou|imitou] {wild}.", *TALK),
        ("<then>, a chuva [parou|passou|acabou], e [nasceu|apareceu] um arco-íris sobre {o outdoor adj?}.",
         "<then>, a luz [voltou|acabou], e {o e} [acendeu|buscou] [uma vela|uma lanterna|um lampião] {no room}."),
        CHEER, END,
    ), thing="bigbox"),
    "contest": Plot((
        ("<opening> naquele dia, havia um concurso de {snack} {no where}.",
         "{o j} [organizou|inventou|anunciou] uma corrida de [sacos|bicicletas|patinetes|triciclos|carrinhos|barquinhos] {no where adj?}, e {h} [quis|resolveu] participar."),
        ("o prêmio era {um keepsake nice} e {dois bite}.", "{s} [treinou|ensaiou|praticou] [toda tarde|toda manhã|cinco dias|cada passo|dez passos] com {o thing adj}.",
         "{s} [vestiu|amarrou|usou] {o thing adj} e ficou {fear h}."),
        ("{f} [largou|começou|saiu] na frente, {um pet} [correu|pulou|foi] ao lado, e {h} [seguiu|veio] <how>.",
         "na largada, {o j} tocou {um instrument adj}, <amb>.", *SCENE),
        ("no meio do caminho, {f} [caiu|tropeçou|escorregou] {no obj adj}.", "<then>, {um pet adj} [entrou|parou] no caminho e [derrubou|comeu] {um bite}.",
         "{h} podia [ganhar|vencer], mas viu que {f} [chorava|precisava de ajuda] <outpos>."),
        ("{h} [voltou|parou|deu a mão] e [ajudou|esperou|levantou] {o f}[| <how>].", "{h} [parou|voltou], deu {um wear} {ao f} e [cuidou do joelho|esperou|pediu ajuda {ao job}]."),
        ("quem [ganhou|venceu] foi {o job}, mas {s} [recebeu|ganhou] {um keepsake adj} {do j}.", "{h} e {f} chegaram {joy h f}, por último, e [ganharam|dividiram] {um bite adj}.",
         "[no fim|por pouco], {h} [ganhou|venceu] e [dividiu|repartiu] o prêmio: {dois bite} e {um keepsake}."),
        CHEER, END,
    ), thing="wear", helper="teacher"),
    "newcomer": Plot((
        ("<when>, {f} mudou-se para perto {do where adj?}, com {um obj adj} e {um pet adj}.", "<described> <when>, {f} [entrou|chegou] na turma, {fear f}.",
         "{f} era {trait f}, mas não conhecia ninguém {no where adj?}."),
        ("{h} [viu|notou] que {f} [sentava|brincava|lia] <outpos>, com {o thing adj}.", "na hora do lanche, {f} comia {um bite adj} <outpos>, <amb>."),
        ("— [oi|olá]! [quer|você quer] <play>? ~ <asked> {h}<hmanner>.", "{h} [ofereceu|levou] {um bite adj} e [perguntou|quis saber] de onde vinha {o thing}."),
        ("{f} [contou|disse] que [veio|vinha] {do outdoor adj}, onde [havia|viviam] {muitos creature adj?}.",
         "{f} [mostrou|tirou da mochila] {um obj adj} e [ensinou|explicou] um jogo {do kin}.", *SCENE),
        ("{h} mostrou {o place}, {o place adj} e {o j} para {f}.", "no começo, {o animal} {do h} [estranhou|fugiu], mas [ganhou|comeu] {um bite}.", *TALK),
        ("<then>, {h} e {f} [fizeram|montaram|pintaram] {um toy nice} com papel, [cola|tinta|fita] e {* keepsake}.", "{h} e {f} [descobriram|viram] que gostavam de <play> e de <play>."),
        ADMIRE, END,
    ), thing="toy", helper="teacher", friend_known=False),
    "letter": Plot((
        ("<when>, {o j} [trouxe|entregou|deixou] uma carta [amarela|azul|curta|longa|sem nome] para {h}.",
         "{h} [achou|viu|encontrou] uma carta <inpos>, com {dois creature} [no selo|no papel|na capa].", "<opening> <then>, chegou uma carta {do kin}."),
        ("a carta [dizia|contava|explicava] que {f} [morava|estava] {num place adj} e queria {um thing nice}.",
         "dentro havia {um blow}, um desenho {do creature} e [um pedido|um convite|uma pergunta].", "a letra era {do e}, que [viajava|trabalhava] {num outdoor adj}."),
        ("{s} [leu|mostrou] tudo {ao e} <how> e [pegou|buscou] papel e {um thing adj}.", "{s} [sentou|ficou] {no room}, perto {do inspot}, para [responder|escrever], <amb>."),
        ("{s} [escreveu|contou] sobre {um creature adj}, {o place} e {um dish adj}.", "{s} [desenhou|pintou] [um mapa|um cometa|{um wild adj}], {dois obj} e {um outdoor adj}.", "— o que [eu conto|escrevo|respondo]? ~ <asked> {h}<hmanner>."),
        TALK, SCENE,
        ("[dois|três|cinco] dias depois, {o j} [voltou|apareceu] com {um container adj} e [um recado|um bilhete] {do f}.", "<then>, {f} [respondeu|chegou] com {um bite adj} e [abraçou|procurou] {o h}.",
         "a resposta veio [num|dentro de um] envelope [verde|roxo|grande|perfumado], com {dois blow} {do where}."),
        CHEER, END,
    ), thing="gift", helper="postal", where="far"),
    "market": Plot((
        ("<when>, {h} foi {ao where adj?} com {o e}, [levando|carregando] {um container adj}.", "{o e} [pediu|deu] [dinheiro|moedas] {ao h} para comprar {três fruit} e {um dish}."),
        ("[na banca|na barraca] {do j}, havia {* fruit adj}, {* plant} e {um thing adj}.", "{s} [comprou|provou|escolheu] {três fruit}, {um snack adj} e {veg}.",
         "{o j} [vendia|oferecia|mostrava] {um thing adj}, {dois obj} e {* snack adj?}."),
        ("— quanto [custa|é] {este thing}? ~ <asked> {h}<hmanner>.", "— [leve|prove|olhe] {os fruit}, pessoal! ~ <cried> {o j}.", *SCENE),
        ("<then>, {s} [percebeu|viu] que [faltava troco|faltava dinheiro|tinha gastado tudo] e ficou {sad h}.", "<then>, {s} [soltou a mão|se afastou] {do e} e [viu|seguiu] {um pet adj}.",
         "{um pet adj} [roubou|levou] {um fruit adj} {do container} e fugiu {pelo outdoor}."),
        HINT,
        ("{o j} [trocou|deu] {o thing} por {um keepsake adj} e [uma canção|um desenho|um sorriso|uma história].", "{s} [ajudou {o j}|carregou {dois container}|varreu {o where}] e ganhou {um bite adj}.",
         "{f} [encontrou|chamou|viu] {o h} perto {do outspot}, e {o e} [respirou|sorriu], {joy e}."),
        CHEER, END,
    ), thing="obj", helper="seller", where="shop"),
}

HELD_OUT_PLOTS: dict[str, Plot] = {
    "map": Plot((
        ("{o e} [deixou|desenhou] um mapa {no thing adj}, e {h} [seguiu|estudou] cada linha {no room}.", "<opening> <then>, {s} [abriu|achou] {um thing adj} com um mapa {do where}."),
        ("o mapa [mandava|dizia para] [contar|andar] [dez|cinco|três] passos {do tree} até {o yardspot adj?}.", "uma seta [apontava|indicava] {o where}, e uma cruz marcava {o yardspot}."),
        ("{h} e {f} [andaram|cavaram|contaram] <how>, <amb>.", "{f} [leu|virou] o mapa de cabeça para baixo e [foi|chegou] {ao place}."), SCENE, HINT,
        ("debaixo {do tree}, havia {um container adj} com {dois keepsake} e {um obj}.", "o tesouro era {um obj adj}, que tinha sido {do e}."), CHEER, END,
    ), thing="container"),
    "raft": Plot((
        ("<when>, {h} e {f} resolveram construir uma jangada {no where}.", "<described> {s} queria atravessar {o where adj?} numa jangada."),
        ("juntaram tábuas, corda, {um thing adj} e {dois container}.", "{o j} [ensinou|mostrou] o nó certo, usando {o thing}."),
        ("— [a bordo|vamos remar], {f}! ~ <cried> {h}<hmanner>.", "{um pet adj} [subiu|pulou] na jangada e [virou|foi] o capitão."), SCENE,
        ("<then>, a correnteza levou {o thing} até {o outdoor adj}.", "a jangada [rodou|balançou|parou] perto {do yardspot}, <amb>."), HINT,
        ("{s} remou <how> e [chegou|voltou] à margem {do where}, {joy h}.", "{f} [jogou|lançou] a corda, e {o e} puxou todo mundo."), CHEER, END,
    ), helper="guide", where="water"),
    "stars": Plot((
        ("numa noite [clara|fria|calma], {h} levou {o thing adj} {ao where} para [olhar|contar] as estrelas.", "<described> certa noite, {o e} [falou|contou] de um cometa."),
        ("{s} [viu|encontrou|inventou] [no céu|entre as nuvens] {um creature}, {um obj} e {um wild adj}.", "{f} [apontou|mostrou] uma luz [azul|verde|branca] sobre {o where adj?}."),
        ("— aquela [estrela|luz] [parece|lembra] {um obj adj} ~ <said> {f}<fmanner>.", "— [quantas são|onde estão] as estrelas? ~ <asked> {h}<hmanner>."), SCENE, TALK,
        ("<then>, uma nuvem [cobriu|escondeu] a lua, e {um singer adj} [cantou|se calou] <outpos>.", "<then>, o cometa [passou|brilhou|surgiu] [por cima|por trás] {do where adj}."),
        ("{s} fez um pedido: [queria|sonhava em] <play>.", *CHEER), END,
    ), thing="optic", where="far"),
}
"""Plots of the validation split only."""
