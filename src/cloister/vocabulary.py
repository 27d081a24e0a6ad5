"""Words and characters that are one token nearly everywhere; facts about vocabularies, for `cloister.window`.

Each was looked up in ``o200k_base`` and ``cl100k_base``; the tests look them up again.
"""

from __future__ import annotations

# One token after a space, in lower case and capitalised.
WORDS = """
the of and to a in is that it was for on are as with his they at be this from have or by one had not but what all were
when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after words called just where most know get through back much before go
good new write our used me man too any day same right look think also around another came come work three word must
because does part even place well such here take why things help put years different away again off went old number
great tell men say small every found still between name should home big give air line set own under read last never us
left end along while might next sound below saw something thought both few those always show large often together
asked house world going want school important until form food keep children feet land side without boy once animal
life enough took sometimes four head above kind almost live page got earth need far hand high year mother light
country father let night picture being study second soon story since white ever paper hard near sentence better best
across during today however sure try young sun thing whole hear example heard several change answer room sea against
top learn point city play five himself usually money seen car morning body upon family later turn move face door cut
done group true half red fish plants living black eat short run book order open ground cold really table remember tree
course front space inside ago sad early learned close nothing though idea add become grow draw yet hands less wind
behind cannot letter among able dog mean english rest perhaps certain six feel fire ready green yes built special ran
full town complete oh person hot anything hold state list hundred ten fast notice strong voice probably area horse
matter stand box start class piece surface river common stop am talk whether fine round dark past ball girl road blue
instead either held already warm gone finally summer understand moon animals mind outside power problem longer winter
deep heavy follow beautiful everyone leave everything game system bring watch shell dry within floor ice ship begin
fact third quite carry distance although sat possible heart real simple snow rain suddenly easy leaves lay size wild
weather miss pattern sky main someone center field stay boat question wide least tiny hour foot care low else gold
build glass rock tall alone bottom check reading fall poor map friend language job music buy window mark heat listen
ask single clear energy week explain lost spring travel farm circle correct bed measure straight base mountain hair
bird wood color war fly yourself thus square moment teacher happy bright sent present plan rather length speed machine
information except figure free fell suppose natural ocean government baby grass plane street reason difference maybe
history mouth middle step child strange wish soil human trip woman eye milk choose north seven famous late pay sleep
iron trouble store oil modern fun catch business reach lot won case speak shape eight edge soft village object age
minute wall meet record copy forest especially necessary he i unit flat direction south subject skin type sort pull
position attention paid simply clean believe ok okay please thanks thank sorry hello hi hey yeah lol guys stuff pretty
actually cool love guess email phone account password website online internet computer software data file message text
chat app user users code service customer support team company market price cost product products project process
program policy public private research report result results review issue issues level local national international
social political economic financial legal law court act party member members general specific current recent future
available additional following according including provide provided provides required require requires request
response return section shall terms conditions agreement rights uses using version term therefore per further
furthermore nor value values rate rates total amount increase increased growth development management environment
education health medical patient patients treatment disease cells blood cause effect effects control test testing
model models method methods analysis theory evidence based function role source sources structure material materials
design quality performance practice training skills experience knowledge opportunity ability access action activities
activity address approach article author average basis benefit benefits board budget building campaign candidate
capital career central century challenge challenges chance character charge choice claim climate collection college
comment comments commission committee community comparison concern conclusion conference connection consider contact
content context continue continued contract contribution council couple create created credit crime crisis critical
culture cultural customers damage date dead deal death debate decision defense degree demand department describe
despite detail details determine develop developed device dinner discuss discussion doctor document dream drive driver
drug east economy election employees enjoy entire established estate event events evening eventually exactly examples
exist expected experienced expert eyes factor factors failed failure fair faith feeling fight final firm force forces
foreign former forward funds gas gets girls given giving global goal goals goes growing gun guy hope hospital hotel
hours huge husband ideas image images imagine immediately impact improve include included includes indeed independent
individual individuals industry influence interest interested interesting interview investment island items joined
judge key kitchen labor lack lady larger largest lead leader leaders leading league learning led legs letters lie
lines lives looking looks loss lower lunch magazine maintain major makes making manager meaning means meeting memory
military million minister minutes mission movement movie moving mr names nature nearly needed needs network news nice
nobody novel numbers obviously offer office officer official officials older operation opinion option options
organization original others otherwise overall owner pain parents park you card copyright license output suite buffer
files permission package documentation limited bar exception distribution handling update stack statement binary due
note execution anyone recommend express mail client functions district variable error argument direct actions focus
zip send motion module instructions flight modify ride reservation employment having precision block string directory
modules install assistant getting month prior comes industries arguments unfortunately stream hill detailed corner
foundation title internal limit documents server doing reference post directed forms active feature command brown
library info coming submit call video reporting frame multiple changed host film employee pass characters acting
transfer added bus destination systems secondary goods duration protection non structures met integer rapid
application rating detect location enter fee super restaurant via feed existing default partner tests contents perfect
normal backup tab times holder birth reserve script club concert relief ordered capacity seek hit insurance takes
located input array authors applications discovery attributes running fail apply summary bank features font operations
religion log birthday booking responses import expect custom double target success element invest console perform
inform search protected status govern height services working initial display player instance property select button
parent override personal season download students throws points handle protect represent started switch condition
format previous months connect series delete writing interface component session received accept remove background
questions screen description dating selected template border implement friends filter unique weight engine taking
respect changes trying similar potential virtual companies addition various popular random relationship actual
distributed offers published receive platform currently attack security technology returns wanted header significant
wonder problems database resources student higher standard latest thread related professional offset prevent release
regular written ensure production defined attempt resource designed fields settings region police deliver useful
vector mobile reserved commit storage groups playing convert elements solution parameters category allows profile
proper levels properties quickly states contains recently president allowed temper associated complex starting entity
channel updated collect digital counter countries easily throughout mention primary serious selection purchase publish
respond saying marketing undefined finish situation favorite setting transport released shared confirm reviews
equipment passed positive photos completely assist programs projects clients insert secret sample returned operator
effective parameter creating editor errors prices variety successful constant depend obtain essential safety played
amazing classes highly videos physical towards vehicle thinking browser layout messages purpose places generate reader
excellent objects intent establish nation master stories reports providing certainly beginning payment greater maximum
adjust symbol requirements devices seconds stress prefer controller origin configuration definitely commercial earlier
population dialog launch cookies reduce removed enable delivery federal builder supply colors compared talking balance
records produce assess exists strict export volume minimum strategy understanding science beyond completed billion
unless traditional income director define attribute missing responsible solutions station regarding supported loaded
reasons planning domain finished particularly parser spirit weekend transaction expression partial closed healthy
highest behavior advice successfully businesses provider workers electric sports connected requests journal variables
massage visual waiting negative posted opening church reflect owners processing generally danger generated replace
aspect society updates starts finding implementation temperature offering helpful payload external biggest produced
socket warranty hidden compare secure extract reject wonderful compliance definition calling separate sector manage
remote reality impress advantage whatever construct schedule football seeing relevant traffic listed exchange cursor
claims loading dynamic cancel communication applied partners previously resolve neighbor signed factory attend branch
helping orders battle covered driving managed showing technical majority mental permissions parties invalid prepared
principal generation movies folder welcome decide presence automatically
"""

# One token after a space in lower case.
LOWER = """
looked began knew told turned toward gave brought lived became shown stood felt kept carefully themselves walked
itself happened grew wrote whose caught seem couldn beside wasn picked tired hadn gonna particular whatsoever hereby
whom caused appropriate concerned considered decade decided described determined died difficult effort efforts ended
expensive faced feelings happen happening helped indicate involved killed laughed manner mentioned mistake moved noted
offered opened opposite ought prove quietly reached realized recognize relatively remain remained remains remembered
replied reported seemed served shook showed sides slowly smiled spent spoke stayed stopped sudden suggest suggested
supposed surprised taught tend threw usual victim watched wearing whispered wondering worked worried worry younger
wouldn shouldn weren hasn ll differ likely regard appear directly specified affect myself contain implied agreed
easier slight followed applicable obvious comfortable happens afford appears appoint placed smaller becomes containing
"""

# Characters outside ASCII that are one token each, alone; for a character class. What is invisible, combining or
# written from right to left is escaped, so that this file reads the same everywhere.
CHARACTERS = (
    "¡¢£¤¥¦§¨©ª«¬®¯°±²³´µ¶·¹º»¼½¾¿ÀÁÂÃÄÇÉÍÎÐÑÓÖ×ÚÜßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýāăąćčĐđēęěğīİıłńōőœřśşšţťūůűź"
    "żžơưșțəɵάέήίαβγδεηθικλμνοπρςστυφχωόЂАБВГДЕЗИКЛМНОПРСТУФЦЧЭЯабвгдежзийклмнопрстуфхцчшщъыьэюяёі،कतनपमरलसहন"
    "রกขคงจชณดตถทนบปผพมยรลวสหอะาำเแใไạảấầẩậắặếềểệỉịọỏốồổỗộớờởợụủứửữự‐‑–—―‘’‚“”„†•…‰′″›※₂€™←↑→↓−─━│═║╗╝█░■►●★☆"
    "☴♀♥♪✔⠀、。《》「」『』【】〜あいうえおかがきくけこごさざしじすせそただちっつてでとどなにのはばまみめもや"
    "よらりるれろわをんアィイウェエオカキクグコサシジスズセタダチッテデトドナニバパビピフブプペポマムメャュョ"
    "ラリルレロン・ー！（），－．／０１２３４５６７８９：；＞？＾～･￥�"
    "\u00ad\u0300\u0301\u05d0\u05d1\u05d3-\u05d5\u05d7\u05d9\u05dc\u05de\u05e0\u05e2\u05e8-\u05ea\u0623\u0625"
    "\u0627-\u063a\u0641-\u064a\u064e-\u0652\u067e\u06a9\u06af\u06cc\u0902\u093e-\u0941\u0947\u094b\u094d"
    "\u09be\u09bf\u09c7\u09cd\u0bbf\u0bc1\u0bcd\u0d4d\u0e31\u0e34\u0e35\u0e37-\u0e39\u0e47-\u0e49\u0e4c\u17b6"
    "\u200b\u200c\u200e\u3000\ufe0f\ufeff"
    "가간값개거게결경고공과구그글기나내는능니다당대도동되된드든들디라래러력로록료류른를름리만메면명목문미버번"
    "보복부분비사산상색생서성세션소수스습시식신아야어에여열오와요용우운원위으은을음의이인일임입자작장재적전정"
    "제져조주지진째체출치크태터턴트튼하한할함해호화환회"
    "一万三上下不与专业东两个中串为主么义之也书了事二于五些交产享京人亿今介从他付代以们件价任份企优会传但位体"
    "何余作你使例供価保信修倍值停像元先入全公共关其具内円册再写出击分列则初利别到制前力功加务动動包化北区十午"
    "华单南即历原去县参及友反发取变口只可台右号司合同名后向否含听启告员周命和品哈商問器四回因国图土在地场址型"
    "城基報場填增声处备复外多大天失头女好如始子字存学安宋完定实审客家容密对导将小少尔就局展山岁州工左已市布常"
    "平年并广序库应店度建开异式引张当录形影径待後得微心必志态思性总息您情意感成我或户所手打找技投报拉持指按换"
    "据排接推提播支收改放政效数整文料断新方族无日时明易星是時景更最月有服期木未本机权束条来板构析果查标样核格"
    "案检模次款止正此步歳段每比民気水求江汽没治法注活流海消清游源火点無然片版物特率环现球理生用由电男画界番登"
    "的监目直相省看県真知码确示社票私种科秒称移程稍税稿空立站章端笑符第等签简算管箱米类系素索约级线组经结给络"
    "统编网置美老考者而联能自至色节英藏行表装西要見见规视角解言計記話読计认议记论设证评试话询该详语误说请读调"
    "象责败账货购费资起超路身车转软载辑输达过运近还这进连述退送选通速造連道邮部都配释里重量金钟钮链销错键长開"
    "間関门闭问间队阳陆限院除雅集雷需非面音页项预频题额首验高黑"
)
